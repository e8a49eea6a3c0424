"""Describes each section of a config in words, for the reference in docs/ and for help texts.

`asvr.recipe.schema` (plain fields) and `asvr.recipe.components` describe what is inside the sections.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """The description of one section. holds: the kind of its value. doc: its purpose, in Markdown."""

    holds: str
    doc: str


SECTION_DOCS = dict(
    text_tokenizer=Section("a component of `TEXT_TOKENIZERS`", "The text tokenizer."),
    model=Section(
        "a component of `MODELS`: `VLM` with its parts",
        "Encoder, layout, projector, LLM and the reconstruction targets. A config never has widths, vocabulary or code "
        "sizes: each part gets them from its neighbours.",
    ),
    data=Section("a dict of fields", "What a stage is trained on, and how samples become batches."),
    optim=Section("a dict of fields", "The optimiser, its learning rates, and the precision."),
    schedule=Section("a dict of fields", "How long a stage is, and how the learning rate changes."),
    stages=Section(
        "a dict of stages, `dict(NAME=dict(train=[...], ...), ...)`",
        "The stages of the run, in the order they run. The sections in a stage are merged over the sections of the "
        "config, as a file is merged over its `_base_`: dicts key by key, and everything else is replaced.",
    ),
    runtime=Section("a dict of fields", "Seed, device, intervals of logs and checkpoints, kernels."),
    model_transforms=Section(
        "a list of components of `MODEL_TRANSFORMS`, or None",
        "Changes of the model before it trains: adapters (`Lora`, `QLora`), matrix products in 8 bits (`Float8`).",
    ),
    parallel=Section(
        "a component of `MODEL_WRAPPERS`, or None",
        "How several processes share a step: `DDP` or `FSDP2`. Needed if `torchrun` or `srun` starts more than one.",
    ),
    evaluation=Section(
        "a dict of fields, or None", "Questions that the model is asked at the end of a stage. None: no evaluation."
    ),
    validation=Section(
        "a dict of fields, or None", "Questions that the model is asked while a stage trains. None: no validation."
    ),
    custom_hooks=Section(
        "a list of components of `HOOKS`",
        "Hooks that the training loop also calls: your own, or some of MMEngine's.",
    ),
    visualizer=Section(
        "a tracker's name, a list of trackers, `dict(vis_backends=[...])`, or None",
        "Trackers, such as `'wandb'`. They get everything that is logged, see the [guide](../guides/trackers.md).",
    ),
    published=Section(
        "a dict of fields",
        "The numbers that a paper reports for this config. Training does not read them, and a config that inherits "
        "from this one does not inherit them.",
    ),
    custom_imports=Section(
        "`dict(imports=['module', ...])`",
        "Modules with your own components. They must be installed, or be in the folder where the command is started.",
    ),
    default_scope=Section(
        "a text", "The scope of MMEngine's registries. The default, `'asvr'`, is right for all configs."
    ),
)

STAGE_DOCS = dict(
    train=Section(
        "a list of components, or of patterns",
        "What is trained: any of `encoder`, `projector`, `llm` and `heads`, or patterns of weights such as "
        "`'llm.*.self_attn'`. In a pattern, `*`, `?` and `[0-9]` mean the same as in file names. Losses are trained "
        "with `heads`. Everything else is frozen.",
    ),
    init=Section(
        "`'scratch'`, the name of a stage, or a folder",
        "Where the weights of the stage come from: the weights that the config names (`'scratch'`), an earlier stage, "
        "or a model's folder, whose text tokenizer must give the same ids. The default is the stage before; for the "
        "first stage, it is `'scratch'`.",
    ),
)
