"""Loads a trained model: from its folder, from a run's work dir, or from the Hugging Face Hub."""

import logging
from pathlib import Path

from asvr.base.hub_model import find_model
from asvr.base.precision import check_precision
from asvr.base.text import short
from asvr.engine.finished import EMA, trained_with
from asvr.engine.stages import finished_model
from asvr.engine.training_facts import training_facts
from asvr.models.attention import set_kernel
from asvr.models.transforms import merge_transforms
from asvr.pretrained import Pretrained
from asvr.recipe.build import build_device
from asvr.recipe.config import MODEL_FILE, load_config
from asvr.recipe.model_file import build_described, check_description, import_modules, read_description
from asvr.recipe.model_folder import TEXT_TOKENIZER, load_into, read_weights, why_no_model
from asvr.recipe.recipe import Recipe
from asvr.registry import TEXT_TOKENIZERS
from asvr.sharing.card import read_training

logger = logging.getLogger("asvr")


def load(
    folder: str | Path,
    *,
    device: str = "auto",
    stage: str | None = None,
    precision: str | None = None,
    trust_custom_imports: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> Pretrained:
    """Load a trained model.

    folder: one of these four:

    - a folder that `Pretrained.save_pretrained` wrote
    - the work dir of a finished run
    - the averages that a stage of a run kept (``<work dir>/<stage>/ema``, see ``runtime.ema``)
    - a model of the Hugging Face Hub (``org/name`` or ``org/name@revision``)

    A folder of that name comes first, then ``$ASVR_MODEL_ZOO``, then the Hub. The newest version on the Hub is
    downloaded, as transformers and timm do. (Names in a config are downloaded only with ``ASVR_DOWNLOAD=1``.) With
    ``HF_HUB_OFFLINE=1``, or without a network, the Hub's cache is read. If the part before the slash is a folder here,
    the Hub is not asked: ``work_dirs/typo`` is a wrong path. Only data are downloaded (safetensors, JSON, the
    tokenizer's files), and no code of the model runs.

    revision: a branch, tag or commit of the model on the Hub. token: None: the one of ``hf auth login`` or
    ``HF_TOKEN``. cache_dir: None: the Hub's cache (``HF_HOME``). stage: a stage of a work dir; None: the last one.
    Adapters and other results of its ``model_transforms`` are merged into the weights, if that is possible. precision:
    the precision of answers, see `computing_in`; None: the precision of training. trust_custom_imports: import, and so
    run, the modules that a saved model names for its own components. The ``config.py`` of a work dir is Python and
    runs: load only your own runs.

    Raises ``ValueError`` in one line if the model is not found or is damaged.
    """
    if not isinstance(folder, str | Path):
        raise ValueError(f"asvr.load({short(folder)}): expected a folder's name")
    place = build_device(device)
    folder = find_model(
        folder,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        check=lambda found: _import_modules(found, read_description(found), trust_custom_imports),
    )
    if (folder / MODEL_FILE).is_file():
        if stage is not None:
            raise ValueError(f"{folder}: a saved model has no stages; leave stage={stage!r} out")
        found = _load_folder(folder, trust_custom_imports)
    elif (folder / "config.py").is_file():
        found = _load_work_dir(folder, stage)
    elif folder.name == EMA and ((of_stage := folder.absolute().parent).parent / "config.py").is_file():
        if stage not in (None, of_stage.name):
            raise ValueError(f"{folder}: averages of stage {of_stage.name!r}; leave stage={stage!r} out")
        found = _load_work_dir(of_stage.parent, of_stage.name, averaged=True)
    else:
        raise ValueError(why_no_model(folder))
    found.precision = check_precision(precision, "precision") or found.precision
    found.model.eval()
    return found.to(place)


def _load_folder(folder: Path, trust_custom_imports: bool) -> Pretrained:
    description = read_description(folder)
    _import_modules(folder, description, trust_custom_imports)
    check_description(folder / MODEL_FILE, description)
    model = build_described(description["model"], folder / MODEL_FILE)
    load_into(model, read_weights(folder, description), folder)
    if not model.all_causal:
        set_kernel(model.llm, "sdpa")  # its attention needs a mask of ours, and this kernel takes masks everywhere
    tokenizer = None
    if (folder / TEXT_TOKENIZER).is_dir():
        tokenizer = TEXT_TOKENIZERS.build(dict(type="HFTokenizer", name=str((folder / TEXT_TOKENIZER).absolute())))
    return Pretrained(
        model=model,
        config=description["model"],
        text_tokenizer=tokenizer,
        template=description["template"],
        image_aspect=description["image_aspect"],
        precision=check_precision(description.get("precision"), f"{folder / MODEL_FILE}: precision"),
        custom_imports=description.get("custom_imports"),
        training=read_training(folder),
    )


def _import_modules(folder: Path, description: dict, trust: bool) -> None:
    import_modules(folder / MODEL_FILE, description.get("custom_imports"), trust=trust)


def _load_work_dir(work_dir: Path, stage: str | None, *, averaged: bool = False) -> Pretrained:
    recipe = Recipe(load_config(work_dir / "config.py"))
    if stage is not None and stage not in recipe.stages:
        raise ValueError(f"{work_dir} has no stage {stage!r}: expected one of {list(recipe.stages)}")
    name = recipe.stage(stage).name
    tokenizer = _trained_tokenizer(recipe, name, work_dir)
    model, config = finished_model(recipe, name, tokenizer, work_dir, averaged=averaged)
    if all(hasattr(transform, "merge") for transform in model.transforms):
        merge_transforms(model)
    return Pretrained(
        model=model,
        config=config.model.to_dict(),
        text_tokenizer=tokenizer,
        template=config.data.template if isinstance(config.data.template, str) else config.data.template.to_dict(),
        image_aspect=config.data.image_aspect,
        precision=config.optim.precision,
        custom_imports=recipe.config.get("custom_imports"),
        training=training_facts(recipe, name, work_dir, averaged=averaged),
    )


def _trained_tokenizer(recipe: Recipe, stage: str, work_dir: Path):
    """The text tokenizer that a finished stage was trained with.

    It is the one that the work dir has. If that one differs, it is the config's own. (In work dirs of older versions
    `save_pretrained` of transformers lost a setting.)
    """
    folder = (work_dir / TEXT_TOKENIZER).absolute()
    expected = trained_with(work_dir, stage)["text_tokenizer.fingerprint"]
    for config in (dict(type="HFTokenizer", name=str(folder)), recipe.text_tokenizer):
        try:
            tokenizer = TEXT_TOKENIZERS.build(config)
        except ValueError as error:  # a tokenizer of a user's own class may write other files than Hugging Face's
            logger.info("%s", error)
            continue
        if tokenizer.fingerprint() == expected:
            return tokenizer
    raise ValueError(
        f"{folder}: neither this text tokenizer nor the one that the config names is the one that stage {stage!r} was "
        "trained with: their files have changed, or this version of transformers reads them otherwise"
    )
