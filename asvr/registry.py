"""Registries of the library, so that a config names a component by ``type``.

A user's own component needs no change here: decorate it with one of these registries in any file and
name the file in the config's ``custom_imports``. Those that MMEngine's Runner builds from are children of
its own, which lets one parent have one child a scope; the parts of a model have registries of their own.

Each registry states its contract in one line; docs/components.md has the whole of it, with an example each.
Legend: ``I`` images, ``N`` visual tokens of an image, ``M`` of a visual tokenizer's own grid, ``E`` encoder width,
``H`` LLM width, ``D`` code depth, ``C`` code width, ``W`` head width, ``P`` visual positions.
"""

from mmengine.registry import DATASETS as _DATASETS
from mmengine.registry import HOOKS as _HOOKS
from mmengine.registry import LOOPS as _LOOPS
from mmengine.registry import METRICS as _METRICS
from mmengine.registry import MODEL_WRAPPERS as _MODEL_WRAPPERS
from mmengine.registry import MODELS as _MODELS
from mmengine.registry import OPTIMIZERS as _OPTIMIZERS
from mmengine.registry import PARAM_SCHEDULERS as _PARAM_SCHEDULERS
from mmengine.registry import VISBACKENDS as _VISBACKENDS
from mmengine.registry import Registry

SCOPE = "asvr"


class FullRegistry(Registry):
    """Shows what it has. MMEngine imports a registry's own modules when a name is first looked up: printed, counted or
    listed before that, its registry is empty.

    contract: what a component does, in one line. needs: attributes that each one has, whose absence is told with it.
    """

    def __init__(self, name: str, *, contract: str = "", needs: tuple[str, ...] = (), **kwargs):
        super().__init__(name, **kwargs)
        self.contract, self.needs = contract, needs

    def build(self, cfg, *args, **kwargs):
        """Raises ``ValueError`` where what was built has not all that its contract names."""
        part = super().build(cfg, *args, **kwargs)
        missing = [name for name in self.needs if not hasattr(part, name)]
        if missing:
            raise ValueError(f"{self.broken(part)}: it has no {', '.join(missing)}. The contract: {self.contract}")
        return part

    def broken(self, part: object) -> str:
        """How an error about a component begins."""
        return f"{type(part).__name__} does not keep the {self.name} contract (docs/components.md)"

    def __len__(self) -> int:
        return len(self.module_dict)

    def __repr__(self) -> str:
        self.import_from_location()
        return super().__repr__()

    @property
    def module_dict(self) -> dict:
        self.import_from_location()
        return super().module_dict


def _registry(
    name: str, location: str, parent: Registry | None = None, *, contract: str = "", needs: tuple[str, ...] = ()
) -> Registry:
    """location: the module that registers the library's own components; of several, with blanks between them."""
    return FullRegistry(name, parent=parent, scope=SCOPE, locations=location.split(), contract=contract, needs=needs)


MODELS = _registry("model", "asvr.models.vlm", _MODELS, contract="what `asvr.models.vlm.VLM` has")
ENCODERS = _registry(
    "encoder",
    "asvr.models.encoders",
    contract="an nn.Module, pixels (I, 3, h, w), or what its transform gives, -> features_INE, with width, grid, "
    "num_tokens and transform",
    needs=("parameters", "width", "grid", "num_tokens", "transform"),
)
LAYOUTS = _registry(
    "image layout",
    "asvr.data.layouts",
    contract="an `asvr.data.layouts.ImageLayout`: (size) -> `Layout` of an image's tokens, crops(image), largest()",
    needs=("__call__", "crops", "largest", "fixed", "per_image", "num_cells", "num_separators", "aspects", "crops_key"),
)
PROJECTORS = _registry(
    "projector",
    "asvr.models.projectors",
    contract="an nn.Module, features_INE -> visual_INH, of the in_width and out_width that it is given",
    needs=("parameters",),
)
VISUAL_TOKENIZERS = _registry(
    "visual tokenizer",
    "asvr.models.tokenizers",
    contract="an nn.Module with codebook_sizes, depth, code_width, grid, num_tokens and transform; "
    "encode(pixels) -> codes_IMD, embed(codes_PD) -> vectors_PDC",
    needs=("parameters", "codebook_sizes", "code_width", "grid", "num_tokens", "transform", "depth", "encode", "embed"),
)
LLMS = _registry(
    "llm",
    "asvr.models.llms",
    contract="an nn.Module with hidden_size, num_layers and lm_head; embed(ids), hidden(embeds, taps) and "
    "generate(embeds, mask)",
    needs=("parameters", "hidden_size", "num_layers", "lm_head", "embed", "hidden", "generate"),
)
HEADS = _registry(
    "head",
    "asvr.models.heads",
    contract="an nn.Module, (hidden_PH, vectors_PDC) -> states_PDW, with one of `classifiers` a code depth",
    needs=("parameters", "classifiers"),
)
TARGETS = _registry(
    "reconstruction target",
    "asvr.models.targets",
    contract="an `asvr.models.targets.Target`: truth(pixels, features) -> tensors by name, loss(seen, truth) -> sums",
    needs=("name", "weight", "taps", "truth", "loss", "count", "learns_from", "counts", "set_progress", "check_layout"),
)
LOSSES = _registry(
    "loss",
    "asvr.models.losses",
    contract="(states_PDW, classifiers, codes_PD) -> loss summed over P, and the number of right codes by depth (D,); "
    "of features (told_PE, wanted_PE) -> loss summed over P",
)
TEXT_TOKENIZERS = _registry(
    "text tokenizer",
    "asvr.data.text_tokenizer",
    contract="what `asvr.data.text_tokenizer.TextTokenizer` has, mostly by being one around a fast tokenizer",
    needs=(
        *("encode", "decode", "save_pretrained", "fingerprint"),
        *("num_ids", "bos_id", "eos_id", "pad_id", "prefix_after_control"),
    ),
)
TEMPLATES = _registry(
    "template",
    "asvr.data.chat_template",  # and with it those of asvr.data.templates
    contract="segments(rounds) -> `Segment` objects; stop and stop_text, None where EOS ends an answer",
    needs=("segments", "stop", "stop_text"),
)
DATASETS = _registry(
    "dataset",
    "asvr.data",
    _DATASETS,
    contract="a map-style data set of items for the collate function, mostly a `ConversationDataset` with __len__, "
    "record(i) and image(name)",
    needs=("__len__", "__getitem__"),
)
METRICS = _registry(
    "metric",
    "asvr.evaluation.metrics asvr.benchmarks.metric",
    _METRICS,
    contract="update(row) of each answer, then compute() -> numbers by name",
    needs=("update", "compute"),
)
HOOKS = _registry("hook", "asvr.engine.hooks", _HOOKS, contract="an `mmengine.hooks.Hook`")
MODEL_WRAPPERS = _registry(
    "way of sharing a step",
    "asvr.engine.parallel",
    _MODEL_WRAPPERS,
    contract="takes module= and device=, holds the model as .module and has train_step(window, optim_wrapper)",
    needs=("module", "train_step"),
)
LOOPS = _registry("loop", "asvr.engine.loops", _LOOPS, contract="an `mmengine.runner.BaseLoop` over optimisation steps")
OPTIMIZERS = _registry(
    "optimizer",
    "asvr.engine.optimizers",
    _OPTIMIZERS,
    contract="a torch.optim.Optimizer over params, groups with their own rate and decay",
    needs=("param_groups", "step"),
)
PARAM_SCHEDULERS = _registry(
    "parameter scheduler",
    "mmengine.optim",
    _PARAM_SCHEDULERS,
    contract="an `mmengine.optim._ParamScheduler`",
)
VISBACKENDS = _registry(
    "visualizer backend",
    "mmengine.visualization",
    _VISBACKENDS,
    contract="an `mmengine.visualization.BaseVisBackend`",
)
MODEL_TRANSFORMS = _registry(
    "model transform",
    "asvr.models.transforms",
    contract="called with the model, which it changes in place; merge(model) undoes it and keeps what was learned",
)
