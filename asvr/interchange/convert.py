"""The work of ``asvr convert``: show, import and export models."""

from pathlib import Path

from asvr.base.checkpoint_files import Checkpoint, open_checkpoint
from asvr.base.files import new_folder, require_new
from asvr.data.text_tokenizer import has_vocabulary
from asvr.interchange.detect import Kind, describe, detect
from asvr.interchange.dualtoken import import_dualtoken
from asvr.interchange.export import export_llava
from asvr.interchange.expressible import is_tiled
from asvr.interchange.llava import import_llava
from asvr.interchange.llava_folder import OLDEST_TRANSFORMERS, different_inputs
from asvr.interchange.released import import_released
from asvr.interchange.vqgan import import_vqgan
from asvr.loading import load
from asvr.models.hf import arch_of
from asvr.models.tokenizers.semantic import SemanticTokenizer
from asvr.pretrained import Pretrained
from asvr.recipe.model_file import check_prompt
from asvr.registry import TEXT_TOKENIZERS

TOWER, CODES = "tower", "codes"
# The options of `import_checkpoint` for each kind of checkpoint.
OF_A_MODEL = {"text_tokenizer", "template", "image_aspect"}
OPTIONS = dict(
    asvr=OF_A_MODEL | {"heads"},
    llava=OF_A_MODEL | {"encoder"},
    dualtoken={"heads", "tower", "branch", "depth"},
    rqvae={"image_size", "depth"},
    taming={"image_size"},
    llamagen={"image_size"},
    janus={"image_size"},
)


def show(source: Path) -> str:
    return describe(open_checkpoint(source))


def import_checkpoint(source: Path, out: Path, **options) -> str:
    """Import a checkpoint as a folder of a model or of a visual tokenizer. Returns what was done, in words.

    out: the new folder, which must not exist. options: those of the command line by name, None if not given. Raises
    ``ValueError`` for an option that this kind of checkpoint does not have.
    """
    require_new(out)
    checkpoint = open_checkpoint(source)
    kind = detect(checkpoint)
    if not kind.supported:
        raise ValueError(f"{source}: {kind.title}")
    options = {name: value for name, value in options.items() if value is not None}
    known = OPTIONS[kind.name.split("-")[0]]
    useless = [f"--{name.replace('_', '-')}" for name in sorted(options.keys() - known)]
    if useless:
        takes = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(known))
        raise ValueError(f"{source}: {', '.join(useless)}: no option for {kind.what}, which takes {takes}")
    if kind.name.startswith("dualtoken"):
        return _import_dualtoken(checkpoint, kind, out, **options)
    if kind.name in ("asvr", "llava"):
        return _import_model(checkpoint, kind, out, **options)
    config, tokenizer = import_vqgan(checkpoint, kind.name, prefix=kind.prefix(checkpoint), **options)
    tokenizer.save_pretrained(out)
    return f"{source}: {kind.what} -> {out}\nIts config: {dict(config, name=str(out))}"


def _import_model(
    checkpoint: Checkpoint,
    kind: Kind,
    out: Path,
    *,
    heads: int | None = None,
    encoder: str | None = None,
    text_tokenizer: str | None = None,
    template: str = "vicuna_v1",
    image_aspect: str | None = None,
) -> str:
    image_aspect = image_aspect or checkpoint.setting("image_aspect_ratio", str, "square")
    _check_prompt(template, image_aspect)
    if kind.name == "asvr":
        config, model = import_released(checkpoint, heads)
    else:
        config, model = import_llava(checkpoint, encoder)
    tokenizer = _text_tokenizer(checkpoint, text_tokenizer)
    if tokenizer is not None and tokenizer.num_ids > model.llm.vocab_size:
        raise ValueError(
            f"{checkpoint.path}: its LLM has {model.llm.vocab_size} embeddings, the text tokenizer needs "
            f"{tokenizer.num_ids}, for its ids up to {tokenizer.num_ids - 1}: they do not belong together; name "
            "another text tokenizer with --text-tokenizer"
        )
    Pretrained(
        model=model, config=config, text_tokenizer=tokenizer, template=template, image_aspect=image_aspect
    ).save_pretrained(out)
    without = "" if tokenizer else " (without a text tokenizer: it can be trained further, but it cannot be asked)"
    return f"{checkpoint.path}: {kind.what} -> {out}{without}; asvr.load reads it"


def _import_dualtoken(
    checkpoint: Checkpoint,
    kind: Kind,
    out: Path,
    *,
    heads: int | None = None,
    tower: str = "",
    branch: str = "semantic",
    depth: int | None = None,
) -> str:
    config, tokenizer = import_dualtoken(
        checkpoint,
        branch,
        generation="d" if kind.name == "dualtoken-d" else "ab",
        prefix=kind.prefix(checkpoint),
        name=tower,
        num_heads=heads,
        depth=depth,
    )
    config = _save_tokenizer(tokenizer, config, out)
    return f"{checkpoint.path}: {kind.what}, its {branch} branch -> {out}\nIts config: {config}"


def _save_tokenizer(tokenizer: SemanticTokenizer, config: dict, out: Path) -> dict:
    """Write the tower as a Hugging Face folder, and the codes beside it. Returns the config that reads both."""
    tower = tokenizer.encoder.model
    layer = tokenizer.encoder.layer
    tower.config.num_hidden_layers = max(layer) if isinstance(layer, list) else layer  # it has no later blocks
    encoder = dict(type="HFVisionEncoder", name=str(out / TOWER), layer=layer, arch=arch_of(tower.config))
    tokenizer.encoder_config, tokenizer.own_encoder.source = encoder, str(out / TOWER)
    with new_folder(out) as partial:
        tower.save_pretrained(partial / TOWER)
        tokenizer.save_pretrained(partial / CODES)
    return dict(config, name=str(out / CODES), encoder=encoder)


def _check_prompt(template: str | dict, image_aspect: str) -> None:
    problems = check_prompt(template, image_aspect)
    if problems:
        raise ValueError("; ".join(problems))


def _text_tokenizer(checkpoint: Checkpoint, name: str | None):
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    if name is None and not has_vocabulary(folder):
        return None
    return TEXT_TOKENIZERS.build(dict(type="HFTokenizer", name=name or str(folder.absolute())))


def export(
    source: Path,
    out: Path,
    *,
    format: str,
    stage: str | None,
    image_aspect: str | None,
    template: str | None,
    trust_custom_imports: bool,
) -> str:
    """Export a trained model to ``out``, which must not exist. Returns what was done, in words."""
    require_new(out)
    found = load(source, device="cpu", stage=stage, trust_custom_imports=trust_custom_imports)
    found.image_aspect = image_aspect or found.image_aspect
    found.template = template or found.template
    _check_prompt(found.template, found.image_aspect)
    if format == "asvr":
        return f"{found.save_pretrained(out)}: asvr.load reads it"
    written, tiled = export_llava(found, out), is_tiled(found.model)
    kind = "LlavaNextForConditionalGeneration" if tiled else "LlavaForConditionalGeneration"
    return (
        f"{written}: {kind} and AutoProcessor of transformers {OLDEST_TRANSFORMERS} or newer read it\n"
        f"Inputs that give other pixels there than in training (also in its README.md):\n{different_inputs(tiled)}"
    )
