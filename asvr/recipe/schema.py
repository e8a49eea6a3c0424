"""The plain fields of a config, section by section: their allowed values and what they do.

Components (dicts with ``type``) are not listed here: their fields are the arguments of their constructors. Fields of
entries inside a section (a target, a group of the optimiser) are in `asvr.recipe.entries`. docs/reference/config.md is
generated from both.
"""

from asvr.data.images import LARGEST_LIMIT
from asvr.data.transforms import ASPECTS
from asvr.models.tree import TRAINABLE
from asvr.recipe.fields import Field, count, is_int, number, one_of, optional

PRESETS = ("cosine", "linear", "constant", "wsd")  # of `schedule`
COMPONENT = Field("a component, dict(type=...)", lambda value: isinstance(value, dict))
FLAG = one_of(True, False, default=False)
NAMES = ", ".join(f"`{name}`" for name in TRAINABLE)


def is_pack(value) -> bool:
    known = dict(max_tokens=count(), max_images=optional(count()))
    return isinstance(value, bool) or (
        isinstance(value, dict) and all(key in known and known[key].test(item) for key, item in value.items())
    )


def is_device(value: str) -> bool:
    kind, _, index = value.partition(":")
    return value in ("auto", "cpu", "cuda") or (kind == "cuda" and index.isdigit())


METRICS = Field(
    "a list of metrics, [dict(type=...), ...]",
    lambda value: isinstance(value, list | tuple) and len(value) > 0,
    default=[dict(type="ExactMatch")],
    doc="The metrics that are computed from the answers. `ExactMatch` gives the accuracy, in total and by kind of "
    "question; upper case, spaces at the ends and a final full stop do not count. Your list replaces the default: add "
    "`ExactMatch` to it if you want both. Each metric is tried on one question before the run trains.",
)
QUESTIONS = dict(  # of `evaluation` and `validation`
    dataset=COMPONENT.but(doc="The questions. The last answer of each record is the expected one."),
    batch_size=count(default=64, doc="The number of questions that are answered at once."),
    max_new_tokens=count(default=32, doc="The most tokens of an answer."),
    limit=optional(count(), doc="Ask only this many questions, the first ones. None: all."),
    metrics=METRICS,
)

PUBLISHED = dict(
    table=Field("the table's name, 'T1'", lambda v: isinstance(v, str) and v != "", doc="The paper's table."),
    row=Field("the row's name", lambda v: isinstance(v, str) and v != "", doc="The row of the table."),
    average=number(0, doc="The published average of the row."),
    scores=Field(
        "a dict of a number for each column",
        lambda v: isinstance(v, dict) and len(v) > 0 and all(number(0).test(score) for score in v.values()),
        doc="The published score of each benchmark.",
    ),
    differs=Field(
        "a list of texts: how this config differs from the paper",
        lambda v: isinstance(v, list | tuple) and all(isinstance(text, str) for text in v),
        doc="How this config differs from the paper.",
    ),
)

DATA = dict(
    train=COMPONENT.but(doc="The data set to train on."),
    template=Field(
        "the name of a template, or dict(type=...)",
        lambda value: isinstance(value, str | dict),
        doc="The text around questions and answers, and the part of it that is learned. It is a name such as "
        "`'vicuna_v1'`, or a component with fields, `dict(type='vicuna_v1', system='')`.",
    ),
    max_length=count(
        doc="The most positions of a row, with visual tokens. Text beyond it is cut, images never are. It may not be "
        "above the LLM's own maximum."
    ),
    image_aspect=one_of(
        *ASPECTS,
        doc="How an image is brought to the encoder's size. `'square'`: as the encoder's own processor does it. "
        "`'pad'`: the image is padded to a square first. `'resize'`: the image is squeezed. `NaFlexEncoder` takes only "
        "`'square'`.",
    ),
    on_error=one_of(
        "raise",
        "skip",
        doc="What to do with a record or an image that cannot be used. `'raise'`: end the run with an error. `'skip'`: "
        "leave the record out and count it.",
    ),
    max_pixels=optional(
        Field(f"a whole number from 1 to {LARGEST_LIMIT}", lambda v: is_int(v) and 1 <= v <= LARGEST_LIMIT),
        doc="An image with more pixels is refused before it is decoded. None: 100,000,000.",
    ),
    micro_batch=count(doc="Rows of one forward pass, in each process. Without `pack`, a row is a sample."),
    global_batch=count(
        doc="Samples of one optimisation step, in all processes together. It is a multiple of `micro_batch`. The "
        "number of accumulated passes follows from the two."
    ),
    num_workers=count(
        0,
        doc="Worker processes that read and decode images, for each training process. Each worker keeps one "
        "optimisation step ready in shared memory (`/dev/shm`). If that is too small, the run ends before it trains, "
        "with an error that says how much it needs.",
    ),
    worker_timeout=optional(
        number(0, above=True),
        doc="The run ends if the workers give no sample for this many seconds. A run in one process writes a "
        "checkpoint first. None: 600.",
    ),
    cache=one_of(
        True,
        False,
        "codes",
        default=False,
        doc="True: features of a frozen encoder and codes of the targets are computed once, before training. "
        "`'codes'`: only codes, which are found by the content of the images (see `asvr cache-codes`). Stages with "
        "different values of `image_aspect` have features and codes of their own.",
    ),
    pack=Field(
        "True, False or dict(max_tokens=..., max_images=...)",
        is_pack,
        default=False,
        doc="True: several samples share one row without padding, and no sample sees another. A dict sets the limits "
        "of a row; the default is `micro_batch * max_length` tokens. An LLM that computes other results for packed "
        "samples is refused; this is tested before training.",
    ),
    group=one_of(
        None,
        "length",
        "modality",
        default=None,
        doc="Which rows share a micro-batch, if `pack` is off. `'length'`: rows of similar length. `'modality'`: the "
        "same, and rows with and without images are kept apart. The samples and the objective of a step stay the same.",
    ),
    balance=one_of(
        False,
        True,
        default=False,
        doc="With several processes, deal the samples of a step by their cost (tokens and images) in place of their "
        "number, so that the processes wait less for each other. Each process then reads the texts of the whole step, "
        "but only its own images. The samples and the objective of a step stay the same.",
    ),
    cache_budget_gb=optional(
        number(0, above=True),
        doc="The most disk space in GB (1e9 bytes) for the features, and for the codes of each target. If stages "
        "differ in `image_aspect`, it holds for each value of it. The log says how much they need before they are "
        "computed.",
    ),
    cache_dir=Field(
        "a folder's name, or None",
        lambda v: v is None or isinstance(v, str),
        default=None,
        doc="Where features and codes are kept. None: `cache/` in the work dir. Several runs may share a folder.",
    ),
)

OPTIM = dict(
    type=Field(
        "the name of an optimiser",
        lambda value: isinstance(value, str),
        doc="`'AdamW'`, `'Muon'`, any other optimiser of `torch.optim` by its name, one of your own, or an import path "
        "such as `'torchao.optim.AdamW8bit'`. Arguments of its constructor are further fields of this section.",
    ),
    lr=number(0, above=True, doc="The peak learning rate."),
    betas=Field(
        "two numbers from 0 to below 1",
        lambda value: isinstance(value, list | tuple) and len(value) == 2 and all(number(0, 1).test(v) for v in value),
        default=None,
        doc="The decay rates of the moments. If it is left out, the optimiser's own default is used.",
    ),
    weight_decay=number(0, default=0.0, doc="Applies to matrices only, not to biases and norms."),
    clip_grad=Field(
        "a number above 0, or None",
        lambda v: v is None or number(0, above=True).test(v),
        doc="The largest norm of the gradient; a larger gradient is scaled down to it. None: no limit.",
    ),
    precision=one_of(
        "float32",
        "bf16",
        doc="`'bf16'`: matrix products and the LLM's residual stream are in bfloat16; weights, gradients, optimiser "
        "states and losses stay float32. The trained model answers in the same precision, in every command.",
    ),
    lr_scale=Field(
        f"a dict with a factor for any of {', '.join(TRAINABLE)}",
        lambda v: isinstance(v, dict) and all(k in TRAINABLE and number(0).test(f) for k, f in v.items()),
        default=None,
        doc="`dict(heads=2.0)` multiplies the learning rate of a component. Components: " + NAMES + ".",
    ),
    groups=Field(
        f"a dict with a dict for any of {', '.join(TRAINABLE)}",
        lambda v: isinstance(v, dict) and all(k in TRAINABLE for k in v),
        default=None,
        doc="Settings of components: `dict(llm=dict(lr_scale=0.5, layer_decay=0.9))`, see [groups](#optimgroups).",
    ),
)

SCHEDULE = dict(
    epochs=number(0, above=True, default=None, doc="How often the data set is used. Give either this or `steps`."),
    steps=count(default=None, doc="The number of optimisation steps. Give either this or `epochs`."),
    preset=one_of(
        *PRESETS,
        default="cosine",
        doc="How the learning rate falls after the warm-up. `'wsd'` stays constant and then falls in a straight line.",
    ),
    warmup_ratio=number(
        0,
        1,
        default=None,
        doc="The part of the steps, at the start, in which the rate rises in a straight line. Required with a preset.",
    ),
    min_lr_ratio=number(0, 1, default=0.0, doc="The rate at the end of the preset, as a fraction of the peak."),
    decay_ratio=number(
        0,
        1,
        above=True,
        default=None,
        doc="The part of the steps, at the end, in which the rate falls. Only for `'wsd'`, which requires it.",
    ),
    param_schedulers=Field(
        "a list of dict(type=...)",
        lambda v: isinstance(v, list | tuple) and v,
        default=None,
        doc="In place of a preset: a list of MMEngine's parameter schedulers. A length in them is a number of steps. "
        "With a decimal point, it is a fraction of all steps.",
    ),
)

EVALUATION = dict(
    QUESTIONS,
    num_examples=count(
        0,
        default=6,
        doc="The number of images that `summary.png` shows, each with a map of the right visual tokens. Only targets "
        "with codes have such a map. If there is none, `summary.png` has no images.",
    ),
)

VALIDATION = dict(
    QUESTIONS,
    interval=count(doc="Optimisation steps between two validations."),
    best=Field(
        "the name of a number that a metric returns",
        lambda v: isinstance(v, str) and v != "",
        default="accuracy",
        doc="The number that chooses the best weights; higher is better. They are kept in `<stage>/best`.",
    ),
)

RUNTIME = dict(
    seed=count(0, doc="The seed of everything that is random."),
    device=Field(
        "'auto', 'cpu', 'cuda' or 'cuda:0'",
        lambda v: isinstance(v, str) and is_device(v),
        doc="Where the model runs. `'auto'`: CUDA if there is a device, else the CPU.",
    ),
    log_interval=count(doc="Optimisation steps between two lines of `metrics.jsonl`."),
    checkpoint_interval=count(doc="Optimisation steps between two checkpoints."),
    keep_checkpoints=count(doc="How many checkpoints of a stage are kept. While one is written, there is one more."),
    max_skipped=count(
        0,
        default=10,
        doc="A step is skipped if a loss or a gradient is not finite. If a stage has skipped more steps than this, it "
        "writes a checkpoint and ends with an error. This is checked every `log_interval` steps.",
    ),
    async_checkpoint=one_of(
        True,
        False,
        default=True,
        doc="True: a checkpoint is copied to the CPU's memory, and training goes on while the copy is written. False: "
        "training waits. This saves the memory of the copy: 12 bytes for each trained parameter in float32 with AdamW.",
    ),
    attention=one_of(
        "auto",
        "sdpa",
        "xformers",
        "varlen",
        "varlen_fa3",
        "varlen_fa4",
        default="auto",
        doc="The attention kernel for packed rows. `'auto'` takes the fastest one that works on this machine; the log "
        "says which one and why. Any other value is an error if that kernel does not work. `'varlen'` is torch's "
        "variable-length flash attention. `'varlen_fa3'` and `'varlen_fa4'` are the same with FlashAttention-3 or 4, "
        "which are packages of their own, for Hopper (both) and Blackwell (4). Rows of one length always use SDPA.",
    ),
    compile=FLAG.but(
        doc="True, on CUDA only: `torch.compile` the blocks of the LLM and of the depth transformers around their "
        "attention kernel."
    ),
    ema=optional(
        Field("dict(decay=...)", lambda v: isinstance(v, dict)),
        doc="Keep an exponential moving average of the trained weights in `<stage>/ema`, see [ema](#runtimeema).",
    ),
    profile=optional(
        Field("dict(steps=(FIRST, LAST))", lambda v: isinstance(v, dict)),
        doc="Profile some steps, see [profile](#runtimeprofile) and the [guide](../guides/profiling.md).",
    ),
)

SECTIONS = dict(
    published=PUBLISHED,
    data=DATA,
    optim=OPTIM,
    schedule=SCHEDULE,
    evaluation=EVALUATION,
    validation=VALIDATION,
    runtime=RUNTIME,
)
