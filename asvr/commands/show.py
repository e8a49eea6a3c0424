"""Show what a config means: its settings with defaults, the model, its trained parts, and the first samples.

The model is built without memory, and no weights are needed. Samples need the text tokenizer and the data. They show
which tokens are learned and where the images are, so that you can check the template.

examples:
  asvr show asvr_mini
  asvr show my_config.py --stage finetune --samples 3
"""

import argparse

from asvr.commands.cli import add_cfg_options, add_config, new_parser, parse_cfg_options

WIDTH = 120


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = new_parser(prog, __doc__)
    add_config(parser)
    parser.add_argument("--stage", help="the stage to show (default: the last)")
    parser.add_argument("--samples", type=int, default=1, help="the number of samples (default: 1; 0: none)")
    add_cfg_options(parser)
    return parser


def main() -> None:
    args = parser().parse_args()
    if args.samples < 0:
        raise ValueError(f"--samples {args.samples}: expected at least 0")
    from rich.console import Console  # here: --help need not wait for torch

    from asvr.base.hub import MissingWeights, fetch_command
    from asvr.profiling.shown_config import config_text
    from asvr.profiling.shown_model import model_table
    from asvr.profiling.shown_samples import samples_text
    from asvr.recipe.config import load_config
    from asvr.recipe.preflight import check_sizes
    from asvr.recipe.recipe import Recipe
    from asvr.recipe.validate import check_config

    cfg = load_config(args.config, parse_cfg_options(args.cfg_options))
    check_config(cfg)
    recipe = Recipe(cfg)
    stage = recipe.stage(args.stage)
    print(cfg.filename)
    for name, own in recipe.stages.items():
        print(f"stage {name}: starts from {own.init}, trains {', '.join(own.train)}")
    print(f"\nSettings of stage {stage.name}; those marked (default) are not in the config\n")
    print(config_text(stage))
    models = check_sizes(recipe)
    console = Console(width=WIDTH, markup=False, highlight=False)  # names may hold brackets
    console.print("", model_table(models, stage.name), sep="\n")
    if args.samples:
        try:
            text = samples_text(stage, models[stage.name], args.samples)
        except MissingWeights as error:
            missing = ", ".join(f"{model.name} ({fetch_command(model.name)})" for model in error.models)
            text = f"No samples are shown: the text tokenizer is not on this machine: {missing}"
        except (ValueError, OSError, ImportError) as error:  # data or a package is missing; the rest was shown
            text = f"No samples are shown: {' '.join(str(error).split())}"
        print(f"\n{text}")
