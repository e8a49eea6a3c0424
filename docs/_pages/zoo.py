"""docs/zoo.md: every recipe with its sizes. docs/zoo.json has the sizes, which take minutes to count."""

import hashlib
import json
from functools import cache
from pathlib import Path

from mmengine.config import ConfigDict

from _pages.tables import page, table
from asvr.base.files import replace_text
from asvr.base.recipes import RecipeFile, list_recipes
from asvr.flops.count import Sample
from asvr.flops.memory import leaves_images_out
from asvr.profiling.sizes import recipe_sizes
from asvr.recipe.config import PUBLISHED
from asvr.recipe.recipe import Recipe, load_recipe

DOCS = Path(__file__).parents[1]
NUMBERS = DOCS / "zoo.json"
SAMPLE = Sample()
RESULTS = DOCS.parent / "benchmarks" / "results"
NO_SIZE = {  # settings that no size follows from
    *("schedule", "template", "num_workers", "worker_timeout", "global_batch", "on_error", "max_pixels"),
    *("cache_dir", "cache_budget_gb", "lr", "lr_scale", "weight_decay", "clip_grad", "betas", "seed", "device"),
    *("log_interval", "checkpoint_interval", "keep_checkpoints", "max_skipped", "async_checkpoint"),
    "profile",
}
NEEDS_FILES = "needs files that its header says how to make"
ON_CPU, ON_GPU = "cpu_llava_cached", "h200_7b"

INTRO = f"""This page lists every recipe that comes with the library. `asvr train NAME` trains a recipe,
`asvr train NAME --dry-run` prints its sizes in detail, and `asvr list recipes` prints the names.

- **parameters**: all parameters of the model of the last stage, with frozen parts and visual tokenizers. A target that
  only an earlier stage has is not counted.
- **trained**, **TFLOPs**, **memory**: one value for each stage, in the order of the stages.
- **TFLOPs**: for a training step on one sample, which is one image and {SAMPLE.text_tokens} text tokens. A stage whose
  data set leaves images out (`with_images=False`) has only the text. A multiply-accumulate is 2 FLOPs. Features and
  codes from a cache are not counted. Results that activation checkpointing computes twice are counted twice.
- **memory**: the memory plan for one card that holds everything, in GB (1e9 bytes), with the `micro_batch` and
  `max_length` of the config. Several cards share most of it: `asvr plan NAME --plan 1x8`.

The sizes are counted from the configs, without weights. `python docs/generate.py zoo.json` counts them and
`python docs/generate.py zoo.md` writes this page."""

PAPER = """The published averages are the paper's, over all benchmarks of its table. None of them was measured with
this library. [paper.md](paper.md) has the scores of each benchmark."""

METHODS = """Each method has one file for the 7B model of the paper, and one for small scenes that train on a CPU.
[methods.md](../benchmarks/results/methods.md) has the cost of each method compared with LLaVA."""

EXAMPLES = "These are small models that train within minutes, except `naflex` and those with `7b` in the name."

BENCHMARKS = "[benchmarks/README.md](../benchmarks/README.md) says how each figure is measured."

GROUPS = {
    "": ("Recipes", ""),
    "paper": ("Rows of the paper's tables", PAPER),
    "targets/vicuna7b": ("Methods on Vicuna-7B", METHODS),
    "targets/scenes": ("Methods on generated scenes", ""),
    "examples": ("Examples", EXAMPLES),
    "benchmarks": ("Recipes of the benchmarks", BENCHMARKS),
}

STUDIES = """A study compares several recipes over several seeds: `asvr study NAME`. Reports of studies that have run
here: [targets_mini](studies/targets_mini/report.md) and
[caption_free_mini](studies/caption_free_mini/report.md)."""

TOKENIZERS = "A visual tokenizer is fitted or trained by `asvr train-tokenizer NAME`, before the recipes that name it."


def zoo_page() -> str:
    numbers = _known(NUMBERS)
    recipes = list_recipes()
    blocks = []
    for folder, (title, words) in GROUPS.items():
        own = [recipe for recipe in recipes if recipe.command == "train" and _folder(recipe) == folder]
        blocks += [f"## {title}", *([words] if words else []), _table(own, numbers)]
    for title, words, command in (("Studies", STUDIES, "study"), ("Visual tokenizers", TOKENIZERS, "train-tokenizer")):
        rows = ([_link(recipe), recipe.summary] for recipe in recipes if recipe.command == command)
        blocks += [f"## {title}", words, table(("name", "what it is"), rows)]
    return page("# Model and recipe zoo", INTRO, *blocks)


@cache
def trained_recipes() -> dict[str, Recipe]:
    """By name, of all that `asvr train` takes."""
    return {info.name: load_recipe(info.file) for info in list_recipes() if info.command == "train"}


def count_zoo(file: Path = NUMBERS) -> None:
    """Count the sizes of the recipes that are new or have changed, and write the file after each of them."""
    known = _known(file)
    recipes = trained_recipes()
    keys = {name: size_key(recipe) for name, recipe in recipes.items()}
    by_key = {entry["key"]: entry for entry in known.values()}  # recipes that differ in their data have the same sizes
    for name, recipe in recipes.items():
        if keys[name] not in by_key:
            print(f"counting {name}", flush=True)
            by_key[keys[name]] = dict(key=keys[name], **_sizes(recipe))
            done = {name: by_key[key] for name, key in keys.items() if key in by_key}
            replace_text(file, _json(done))
    replace_text(file, _json({name: by_key[key] for name, key in keys.items()}))


def _sizes(recipe: Recipe) -> dict:
    try:
        return recipe_sizes(recipe, SAMPLE)
    except ValueError:
        return dict(why=NEEDS_FILES)


def _known(file: Path) -> dict[str, dict]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _json(entries: dict[str, dict]) -> str:
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items()) + "\n}\n"


def size_key(recipe: Recipe) -> str:
    """Of all settings that sizes may follow from."""
    stages = []
    for stage in recipe.stages.values():
        own = stage.to_dict()
        blind = dict(blind=True) if leaves_images_out(stage.data) else {}
        del own["data"]["train"]
        sections = {name: _without(value) if isinstance(value, dict) else value for name, value in own.items()}
        stages.append([stage.name, stage.init, _without(sections) | blind])
    return hashlib.sha256(json.dumps(stages, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _without(settings: dict) -> dict:
    return {name: value for name, value in settings.items() if name not in NO_SIZE}


def _folder(recipe: RecipeFile) -> str:
    return recipe.name.rpartition("/")[0]


def _link(recipe: RecipeFile) -> str:
    return f"[{recipe.name}](../configs/{recipe.name}.py)"


def _table(recipes: list[RecipeFile], numbers: dict) -> str:
    loaded = {info.name: trained_recipes()[info.name] for info in recipes}
    published = any(PUBLISHED in recipe.config for recipe in loaded.values())
    measured = {name: text for name, text in _measured().items() if name in loaded}
    head = ["name", "what it is", "LLM", "encoder", "targets", "parameters", "trained", "TFLOPs", "memory, GB"]
    rows = []
    for info in recipes:
        recipe = loaded[info.name]
        row = [_link(info), info.summary, *_parts(recipe), *_numbers(numbers.get(info.name))]
        if published:
            said = recipe.config.get(PUBLISHED)
            row.append(f"{said['average']} ({said['table']})" if said else "")
        rows.append(row + [measured.get(info.name, "")] * bool(measured))
    return table(head + ["published average"] * published + ["measured here"] * bool(measured), rows)


def _measured() -> dict[str, str]:
    """By recipe: a training step as it was measured, with a link to the whole result."""
    cpu, gpu = (json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in (ON_CPU, ON_GPU))
    found = {}
    for side in cpu["sides"].values():
        name = side["spec"]["config"].removeprefix("configs/").removesuffix(".py")
        found[name] = (
            f"{side['seconds']:.1f} s a step of {cpu['samples']} samples, {side['peak_gib']:.2f} GiB: "
            f"{cpu['machine']['device']}, {cpu['machine']['threads']} threads ([{ON_CPU}]({_result(ON_CPU)}))"
        )
    for side in ("asvr", "llava"):
        steps = [step for step in gpu["steps"] if (step["stage"], step["side"]) == ("finetune", side)]
        mfu, speed = ([step[key] for step in steps] for key in ("mfu_percent", "images_per_s"))
        found[f"benchmarks/vicuna7b_{side}"] = (
            f"finetune: {min(mfu)} to {max(mfu)} % MFU, {min(speed)} to {max(speed)} images/s: one "
            f"{gpu['machine']['device']} ([{ON_GPU}]({_result(ON_GPU)}))"
        )
    return found


def _result(name: str) -> str:
    return f"../benchmarks/results/{name}.md"


def _parts(recipe: Recipe) -> list[str]:
    model = recipe.last.model
    entries = [entry for stage in recipe.stages.values() for entry in stage.model.get("reconstruction") or []]
    targets = {entry["name"]: entry.get("type", "CodeTarget") for entry in entries}
    words = ", ".join(f"{name}: {kind}" for name, kind in targets.items()) or "none"
    return [_named(model.llm), _named(model.encoder), words]


def _named(part: ConfigDict) -> str:
    """The pretrained model that a part is, or its type."""
    inner = part.get("encoders") or [part[key] for key in ("encoder", "tokenizer") if isinstance(part.get(key), dict)]
    name = part.get("name") or part.get("model")
    if inner:
        return f"{part.type} of {', '.join(map(_named, inner))}"
    arch = (part.get("arch") or {}).get("model_type")
    return name or (f"small {arch}" if arch else part.type)


def _numbers(sizes: dict | None) -> list[str]:
    """None: `count_zoo` has not come to it."""
    if sizes is None or "why" in sizes:
        return [(sizes or {}).get("why", "not counted"), "", "", ""]
    stages = sizes["stages"].values()
    return [
        _count(sizes["parameters"]),
        *(
            ", ".join(_shown(stage[key], show) for stage in stages)
            for key, show in (("trained", _count), ("flops", _tera), ("memory", _giga))
        ),
    ]


def _shown(value, show) -> str:
    return "not counted" if isinstance(value, str) else show(value)


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"


def _tera(number: float) -> str:
    return f"{number / 1e12:.1f}" if number >= 1e11 else f"{number / 1e12:.2g}"


def _giga(number: int) -> str:
    return f"{number / 1e9:.1f}" if number >= 1e9 else f"{number / 1e9:.2g}"
