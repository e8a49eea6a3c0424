"""What each section of a config holds and is for, in words: for the reference in docs/ and for help texts.

What is inside the sections is checked by `asvr.recipe.schema` (plain fields) and `asvr.recipe.components`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """holds: what its value is, in words. doc: what it is for, in Markdown."""

    holds: str
    doc: str


SECTION_DOCS = dict(
    text_tokenizer=Section("a component of `TEXT_TOKENIZERS`", "The text tokenizer."),
    model=Section(
        "a component of `MODELS`: `VLM` with its parts",
        "Encoder, layout, projector, LLM and the reconstruction targets. Widths, vocabulary and code sizes are never "
        "written: each part gets those of its neighbours.",
    ),
    data=Section("a dict of fields", "What a stage is trained on, and how samples become batches."),
    optim=Section("a dict of fields", "The optimiser, its rates, and the precision."),
    schedule=Section("a dict of fields", "How long a stage is, and how the learning rate changes."),
    stages=Section(
        "a dict of stages, `dict(NAME=dict(train=[...], ...), ...)`",
        "The stages of the run, in the order they run. Anything else in a stage is merged over the sections of the "
        "config, as a file is merged over its `_base_`: dicts key by key, all else is replaced.",
    ),
    runtime=Section("a dict of fields", "Seed, device, intervals of logs and checkpoints, kernels."),
    model_transforms=Section(
        "a list of components of `MODEL_TRANSFORMS`, or None",
        "Changes of the model before it trains: adapters (`Lora`, `QLora`), products in 8 bits (`Float8`).",
    ),
    parallel=Section(
        "a component of `MODEL_WRAPPERS`, or None",
        "How several processes share a step: `DDP` or `FSDP2`. Needed where `torchrun` or `srun` starts several.",
    ),
    evaluation=Section(
        "a dict of fields, or None", "Questions that a stage asks when it has ended. None: it asks none."
    ),
    validation=Section("a dict of fields, or None", "Questions that a stage asks while it trains. None: it asks none."),
    custom_hooks=Section(
        "a list of components of `HOOKS`",
        "MMEngine's hooks, of your own or MMEngine's, that the training loop calls beside its own.",
    ),
    visualizer=Section(
        "`dict(vis_backends=[...])`, or None",
        "Trackers (components of `VISBACKENDS`), which get all that is logged.",
    ),
    published=Section(
        "a dict of fields",
        "What a paper reports of the row that this config stands for. Training does not read it, and a config that "
        "inherits from this one does not inherit it.",
    ),
    custom_imports=Section(
        "`dict(imports=['module', ...])`",
        "Modules with components of your own. They are found where the command is started, or installed.",
    ),
    default_scope=Section(
        "a text", "MMEngine's scope of the registries. The default, `'asvr'`, is right for all configs."
    ),
)

STAGE_DOCS = dict(
    train=Section(
        "a list of components, or of patterns",
        "What is trained: any of `encoder`, `projector`, `llm` and `heads`, or patterns of weights such as "
        "`'llm.*.self_attn'`, in which `*`, `?` and `[0-9]` mean what they mean in file names. Losses are trained with "
        "`heads`. Everything else is frozen.",
    ),
    init=Section(
        "`'scratch'`, the name of a stage, or a folder",
        "What the stage starts from: the weights that the config names (`'scratch'`), an earlier stage, or a model's "
        "folder. The default is the stage before it; of the first stage, `'scratch'`.",
    ),
)
