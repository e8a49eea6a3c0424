"""Builds the objects of a run from a config: model, data sets and loaders."""

import copy
import logging
import math
import random
from collections import Counter
from collections.abc import Callable

import torch
from mmengine.config import Config
from torch.utils.data import DataLoader

from asvr.base.distributed import get_rank, get_world_size
from asvr.base.interruption import obey_parent_alone
from asvr.base.log_once import log_once
from asvr.base.precision import PRECISIONS
from asvr.data.collate import Collate
from asvr.data.conversation import require_learned
from asvr.data.images import MAX_PIXELS, open_image
from asvr.data.layouts import ImageLayout
from asvr.data.mixture import sampler_of
from asvr.data.packing import Balance, StepCollate
from asvr.data.refusals import Refusal, Refused
from asvr.data.samplers import BatchSampler
from asvr.data.workers import TIMEOUT, require_room_for_workers, tensors_in
from asvr.models.attention import AUTO, choose, set_kernel, widths_of
from asvr.models.targets.weights import has_weight
from asvr.models.transforms import transform_and_train
from asvr.recipe.preflight import build_meta, check_sizes
from asvr.recipe.recipe import Recipe, Stage
from asvr.recipe.schema import is_device
from asvr.registry import DATASETS, MODELS

LOOKED_AT = 1000  # the most records that are tried until one can be used
ITEM = ("input_ids", "labels", "images", "image_keys", "sample_id")  # the keys that each item of a data set has
MEASURED = 8  # the most samples that are built to measure the size of an optimisation step


def build_model(
    stage: Stage, vocab_size: int, *, defer_llm: bool = False, begin: Callable[[torch.nn.Module], None] | None = None
):
    """Build the model of a stage, with its weights and transforms. Only what ``train`` names gets gradients.

    New weights are drawn from the seed. defer_llm: the LLM may stay on the meta device for now, see
    `HFCausalLM.materialise`. begin: a function that gives the model its first weights, before the transforms.
    """
    torch.manual_seed(stage.runtime.seed)
    deferred = dict(defer_llm=True) if defer_llm else {}
    model = MODELS.build(stage.model, default_args=dict(vocab_size=vocab_size, **deferred))
    if begin is not None:
        model.train_only(sorted(stage.trained_components) if stage.model_transforms else list(stage.train))
        begin(model)
    transform_and_train(model, stage.model_transforms, list(stage.train))
    return model


def build_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not is_device(name):
        raise ValueError(f"device {name!r}: expected 'auto', 'cpu', 'cuda' or 'cuda:0'")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"runtime.device={name!r}: this torch sees no CUDA device; use 'auto' or 'cpu'")
    if name == "cuda" and get_world_size() > 1:
        return torch.device("cuda", torch.cuda.current_device())  # LOCAL_RANK has chosen it
    return torch.device(name)


def as_in_training(part: torch.nn.Module, stage: Stage, device: torch.device) -> torch.nn.Module:
    """Set up a frozen part of the model to compute outputs before training.

    It uses the device and the attention kernel of training, so cached outputs equal those computed online. The LLM's
    dtype is not known here. It only decides between kernels that are the same in vision towers."""
    dtype = PRECISIONS[stage.optim.precision] or torch.float32
    widths = widths_of(build_meta(stage).llm) if device.type == "cuda" else ()  # elsewhere no kernel is tried
    kernel, _ = choose(stage.runtime.get("attention", AUTO), device, dtype, widths)
    set_kernel(part, kernel)
    return part.requires_grad_(False).eval().to(device)


def build_dataset(config: dict, data: Config, tokenizer, num_image_tokens: int | ImageLayout):
    """Build a data set. config: its own config. data: the ``data`` section, which has the template and the limits.
    num_image_tokens: see `ImageLayout.per_image`."""
    return DATASETS.build(
        config,
        default_args=dict(
            tokenizer=tokenizer,
            template=data.template,
            max_length=data.max_length,
            num_image_tokens=num_image_tokens,
            on_error=data.on_error,
        ),
    )


def check_data(recipe: Recipe, tokenizer, layouts: dict[str, ImageLayout]) -> None:
    """Build every data set of every stage, and one item of each, before the first stage.

    This finds a missing file, a template that the tokenizer cannot write, and data without a record that can be used.
    layouts: by stage."""
    for name, stage in recipe.stages.items():
        for key, config in dataset_configs(stage).items():
            try:
                dataset = build_dataset(config, stage.data, tokenizer, layouts[name].per_image)
                _require_usable(dataset, stage, layouts[name], trained=key == "data.train")
            except ValueError as error:
                raise ValueError(f"stage {name}, {key}: {error}") from error


def _require_usable(dataset, stage: Stage, layout: ImageLayout, *, trained: bool) -> None:
    """Raise ``ValueError`` if no record can be used; with ``on_error='raise'``, if the first one cannot.

    Of a large data set only `LOOKED_AT` records are tried. If none of them can be used, a warning is logged."""
    if not trained and not hasattr(dataset, "question"):
        raise ValueError(f"{DATASETS.broken(dataset)}: it has no method question(i), which evaluation needs")
    entries = stage.model.get("reconstruction") or []
    shifts = [entry.get("shift", 0) for entry in entries if has_weight(entry.get("weight", 1.0))]
    max_pixels = getattr(stage.data, "max_pixels", None) or MAX_PIXELS
    places = range(len(dataset))
    if len(dataset) > LOOKED_AT and getattr(dataset, "in_order", False):
        places = places[:LOOKED_AT]
    elif len(dataset) > LOOKED_AT:  # the first and random others: with a fixed stride, all of them could be bad
        places = [0, *random.Random(0).sample(places, LOOKED_AT - 1)]
    reasons, first = Counter(), None
    for i in places:
        item = dataset[i]
        try:
            if isinstance(item, Refusal):
                raise Refused(item.message, item.reason)
            _check_item(item, dataset)
            if trained:
                row = dict(input_ids=item["input_ids"], labels=item["labels"], cut_to=item.get("cut_to"))
                require_learned(**row, num_image_tokens=layout.largest().num_visual, shifts=shifts)
            for image in item["images"]:
                layout.crops(open_image(image, max_pixels=max_pixels))
            return
        except Refused as error:
            message = str(error) if isinstance(item, Refusal) else f"{item['sample_id']}: {error}"
            if stage.data.on_error == "raise":
                raise Refused(message, error.reason) from error
            reasons[error.reason] += 1
            first = first or message
    counted = ", ".join(f"{reason} ({number})" for reason, number in reasons.most_common())
    if len(places) < len(dataset):
        message = "none of %d records can be used: %s; the first: %s"
        log_once(logging.WARNING, message, len(places), counted, first)
        return
    raise ValueError(f"none of the {len(places)} records can be used: {counted}; the first: {first}")


def _check_item(item, dataset) -> None:
    lacking = [key for key in ITEM if key not in item] if isinstance(item, dict) else ITEM
    if lacking:
        raise ValueError(f"{DATASETS.broken(dataset)}: an item, {type(item).__name__}, has no {', '.join(lacking)}")


def dataset_configs(stage: Stage) -> dict[str, dict]:
    """The configs of a stage's data sets for training and evaluation, by their keys in the config.

    Each has the stage's ``on_error``."""
    configs = {"data.train": stage.data.train}
    for key in ("evaluation", "validation"):
        if getattr(stage, key):
            configs[f"{key}.dataset"] = getattr(stage, key).dataset
    return {key: dict(dict(on_error=stage.data.on_error), **config) for key, config in configs.items()}


def data_fingerprint(dataset) -> str | None:
    """The result of `ConversationDataset.fingerprint`, or None if a user's data set does not have this method."""
    return dataset.fingerprint() if hasattr(dataset, "fingerprint") else None


def shifts_of(model) -> list[int]:
    """The shifts of the targets that learn from images."""
    return [target.shift for target in model.targets if target.counts]


def build_collate(data: Config, model, tokenizer, cache=None, *, packed: bool = False, trains: bool = False) -> Collate:
    """Build the collate function. trains: for training rows; rows with nothing to learn are then refused."""
    return Collate(
        layout=model.layout,
        views=model.views(),
        targets=[target.name for target in model.targets],
        pad_id=tokenizer.pad_id,
        image_aspect=data.image_aspect,
        max_length=data.max_length,
        on_error=data.on_error,
        max_pixels=getattr(data, "max_pixels", None) or MAX_PIXELS,
        packed=packed,
        shifts=shifts_of(model) if trains else None,
        cache=cache,
    )


def pack_limits(data: Config) -> dict | None:
    """The limits of a packed micro-batch, from ``data.pack``. The default of ``max_tokens`` is the size of padded
    rows."""
    if not data.get("pack"):
        return None
    given = {} if data.pack is True else dict(data.pack)
    return dict(dict(max_tokens=data.micro_batch * data.max_length, max_images=None), **given)


def build_train_loader(stage: Stage, dataset, collate: Collate, cost: dict[str, float] | None = None) -> DataLoader:
    """A loader of endless optimisation steps, each a list of micro-batches. The seed decides the order of samples.

    cost: of tokens, pairs and crops, see `asvr.data.packing.Balance`. It is used if ``data.balance`` is set."""
    sampler, process = sampler_of(dataset, stage.runtime.seed), dict(rank=get_rank(), world_size=get_world_size())
    if not stage.data.get("balance") or get_world_size() == 1:
        return build_step_loader(
            stage, dataset, collate, BatchSampler(sampler, size=stage.data.global_batch, **process)
        )
    batches = BatchSampler(sampler, size=stage.data.global_batch)  # workers read the texts of all, see `StepCollate`
    return build_step_loader(stage, dataset, collate, batches, Balance(**process, **(cost or {})))


def build_step_loader(
    stage: Stage, dataset, collate: Collate, batch_sampler, balance: Balance | None = None
) -> DataLoader:
    """A loader of optimisation steps, each a list of micro-batches, with the samples that ``batch_sampler`` names."""
    data = stage.data
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        collate_fn=StepCollate(
            collate,
            micro_batch=data.micro_batch,
            pack=pack_limits(data),
            group=data.get("group"),
            balance=balance,
        ),
        num_workers=data.num_workers,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=1 if data.num_workers else None,  # an item is a whole step, in shared memory
        generator=torch.Generator().manual_seed(stage.runtime.seed),  # so the global generator does not move
        multiprocessing_context="fork" if data.num_workers else None,
        worker_init_fn=obey_parent_alone,
        timeout=(data.get("worker_timeout") or TIMEOUT) if data.num_workers else 0,
    )


def _require_room(data: Config, dataset, collate: Collate) -> None:
    """Check that shared memory has room for the steps of the workers. One micro-batch is built to measure a step."""
    if not data.num_workers:
        return
    own = -(-data.global_batch // get_world_size())
    count = min(MEASURED, own, data.micro_batch, len(dataset))
    items = []
    in_order = getattr(dataset, "in_order", False)
    for i in range(count):
        try:
            items.append(dataset[i if in_order else i * len(dataset) // count])
        except Refused:  # reported when training reads it
            continue
    batch = copy.copy(collate)
    batch.on_error = "skip"
    batch = batch(items)
    require_room_for_workers(
        batch,
        share=own / max(1, len(batch.sample_ids)),
        files=sum(1 for _ in tensors_in(batch)) * -(-own // data.micro_batch),
        workers=data.num_workers,
        ahead=1,
        what=f"optimisation steps of {own} samples",
    )


class _AsCached:
    """Stands for a cache that is not built yet: its values have the right shapes."""

    def __init__(self, model):
        self.encoder, self.specs = model.encoder, {target.name: target.truth_spec() for target in model.targets}

    def check(self, keys: list[str]) -> None:
        pass

    def features(self, keys: list[str]) -> torch.Tensor:
        return torch.empty(len(keys), self.encoder.num_tokens, self.encoder.width)

    def truth(self, target: str, keys: list[str]) -> dict[str, torch.Tensor] | None:
        if (specs := self.specs[target]) is None:
            return None
        return {name: torch.empty(len(keys), *spec.shape, dtype=spec.dtype) for name, spec in specs.items()}


def check_workers(recipe: Recipe, tokenizer) -> None:
    """Raise ``ValueError`` if shared memory is too small for the workers of a stage. It runs before the first stage."""
    if not any(stage.data.num_workers for stage in recipe.stages.values()):
        return
    for name, model in check_sizes(recipe).items():
        stage = recipe.stages[name]
        dataset = build_dataset(stage.data.train, stage.data, tokenizer, model.layout.per_image)
        cache = _AsCached(model) if stage.data.get("cache") is True else None
        collate = build_collate(stage.data, model, tokenizer, cache, packed=pack_limits(stage.data) is not None)
        try:
            _require_room(stage.data, dataset, collate)
        except ValueError as error:
            raise ValueError(f"stage {name}: {error}") from error


def num_steps(stage: Stage, num_samples: int) -> int:
    if "steps" in stage.schedule:
        return stage.schedule.steps
    return math.ceil(num_samples * stage.schedule.epochs / stage.data.global_batch)
