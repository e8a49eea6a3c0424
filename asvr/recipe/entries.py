"""The plain fields of entries inside a config's sections.

These are a target of codes, a source of a mixture, a group of the optimiser, averaged weights, and the profiler."""

from torch import nn

from asvr.recipe.fields import Field, count, is_int, is_number, number, one_of, optional
from asvr.recipe.schema import COMPONENT, FLAG

SHIFTS = (0, 1)

NAME = Field(
    "a name of letters, digits and _ that is not a method of torch's modules (such as 'half', 'train', 'keys')",
    lambda value: isinstance(value, str) and value.isidentifier() and not hasattr(nn.ModuleDict, value),
    doc="The target's name in logs, caches and checkpoints.",
)

TARGET = dict(  # of a CodeTarget
    type=Field(
        "the name of a target",
        lambda value: isinstance(value, str),
        default="CodeTarget",
        doc="The kind of target. The fields below are those of a `CodeTarget`; another kind has the fields of its "
        "constructor, see [components](components.md#targets).",
    ),
    name=NAME,
    tokenizer=COMPONENT.but(doc="The visual tokenizer that makes the codes."),
    head=COMPONENT.but(doc="What predicts the codes from the LLM's hidden states."),
    loss=COMPONENT.but(
        default=dict(type="CodeCrossEntropy"),
        doc="The loss. If a loss has weights of its own, they are trained with the heads.",
    ),
    weight=Field(
        f"{number(0).expected}, or dict(begin=..., end=..., until=...)",
        lambda v: number(0).test(v) or isinstance(v, dict),  # the target checks the values of the dict
        default=1.0,
        doc="The factor of the loss. `dict(begin=0.0, end=1.0, until=0.5)` changes it in a straight line from the "
        "first step of a stage to its middle. With `until=1`, the default, it changes until the last step.",
    ),
    shift=one_of(
        *SHIFTS,
        doc="1: the hidden state before a visual token predicts its code (the paper's equation 2). 0: the token's own "
        "hidden state predicts it (the released code).",
    ),
    tap=Field(
        "-1 (after the final norm) or the number of a layer",
        lambda v: is_int(v) and v >= -1,
        default=-1,
        doc="Which hidden state predicts the codes. -1: the one after the final norm. 0: the input of the first block. "
        "`k`: the output of the k-th block; for the last block, before the final norm.",
    ),
    resample=one_of(
        None,
        "nearest",
        default=None,
        doc="None: the tokenizer and the encoder must have the same grid. `'nearest'`: each position of the encoder "
        "takes the code of the cell in which its centre lies.",
    ),
    supervise=Field(
        f"{count().expected}, dict(every=...), dict(cells=[...]) or None",
        lambda v: v is None or count().test(v) or isinstance(v, dict),
        default=None,
        doc="Which visual tokens have a loss in training. None: all. A number: this many of each image (with tiles, of "
        "each crop), drawn again in each step. `dict(every=k, first=0)`: each k-th token in raster order. "
        "`dict(cells=[...])`: the tokens of these cells.",
    ),
    fit=Field(
        "a dict of arguments of the tokenizer's fit()",
        lambda v: isinstance(v, dict),
        default=None,
        doc="Fit the tokenizer on the training images before the first stage, with these arguments "
        "(`vectors_per_code`, `iterations`). Needs `data.cache=True`.",
    ),
)

SOURCE = dict(  # of a mixture
    dataset=COMPONENT.but(doc="The data set."),
    weight=optional(
        number(0, above=True),
        doc="The source's share of the samples, relative to the other sources. Give it for all sources or for none. "
        "None: the number of its records.",
    ),
    name=Field(
        "a name, or None",
        lambda value: value is None or isinstance(value, str),
        default=None,
        doc="The source's name in `metrics.jsonl`. None: the name of its file.",
    ),
)

GROUP = dict(  # of `optim.groups`
    lr_scale=number(0, default=1.0, doc="A factor of the component's learning rate."),
    weight_decay=number(
        0, default=None, doc="The component's own weight decay. If it is left out, `optim.weight_decay` is used."
    ),
    layer_decay=Field(
        "a number above 0, at most 1",
        lambda v: is_number(v) and 0 < v <= 1,
        default=None,
        doc="Each block's learning rate is this factor times the rate of the next block, so that early blocks learn "
        "more slowly. Only for `llm` and `encoder`.",
    ),
    muon=one_of(
        True,
        False,
        default=True,
        doc="Only for `type='Muon'`. False: AdamW also trains the matrices of this component.",
    ).but(expected="True or False"),
)

EMA = dict(  # `runtime.ema`
    decay=number(0, 1, doc="The part of the average that is kept in each step, such as 0.999."),
    evaluate=FLAG.but(doc="True: the averaged weights are evaluated too, as `<stage>_ema` in `results.json`."),
)

PROFILE = dict(  # `runtime.profile`
    steps=Field(
        "the first and the last step to profile, two whole numbers from 1",
        lambda v: (
            isinstance(v, list | tuple) and len(v) == 2 and all(count().test(step) for step in v) and v[0] <= v[1]
        ),
        doc="The first and the last step of the stage to profile, such as `(10, 13)`. The first step of a stage is 1.",
    ),
    memory=FLAG.but(doc="True, on CUDA only: also write a snapshot of the GPU's memory."),
)
