"""From a config to the objects of a run."""

import math

import torch
from mmengine.config import Config
from torch.utils.data import DataLoader

from asvr.config import distinct, stage_config
from asvr.data.collate import Collate
from asvr.data.images import MAX_PIXELS
from asvr.data.mixture import sampler_of
from asvr.data.packing import StepCollate
from asvr.data.samplers import BatchSampler
from asvr.engine.interruption import obey_parent_alone
from asvr.engine.processes import get_rank, get_world_size
from asvr.models.attention import AUTO, choose, set_kernel
from asvr.precision import PRECISIONS
from asvr.registry import DATASETS, MODELS
from asvr.schema import is_device


def build_model(cfg: Config, vocab_size: int, *, defer_llm: bool = False):
    """The model of a stage with its weights, from the seed; only what ``train`` names gets gradients. defer_llm: its
    LLM may be on the meta device still, see `HFCausalLM.materialise`."""
    torch.manual_seed(cfg.runtime.seed)
    deferred = dict(defer_llm=True) if defer_llm else {}
    model = MODELS.build(cfg.model, default_args=dict(vocab_size=vocab_size, **deferred))
    model.train_only(list(cfg.train))
    return model


def build_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not is_device(name):
        raise ValueError(f"device {name!r}: expected 'auto', 'cpu', 'cuda' or 'cuda:0'")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"runtime.device={name!r}: this torch sees no CUDA device; use 'auto' or 'cpu'")
    if name == "cuda" and get_world_size() > 1:
        return torch.device("cuda", torch.cuda.current_device())  # which LOCAL_RANK chose
    return torch.device(name)


def as_in_training(part: torch.nn.Module, cfg: Config, device: torch.device) -> torch.nn.Module:
    """A frozen part of the model that computes something ahead of training, where and by the attention kernel that
    training will use, so that what is cached is what would be computed online. The LLM's dtype is not at hand; it
    decides only between kernels that are one in towers."""
    dtype = PRECISIONS[cfg.optim.precision] or torch.float32
    kernel, _ = choose(cfg.runtime.get("attention", AUTO), device, dtype)
    set_kernel(part, kernel)
    return part.requires_grad_(False).eval().to(device)


def build_dataset(config: dict, data: Config, tokenizer, num_image_tokens: int):
    """config: the dataset's own; data: the ``data`` section, whose template and limits it gets."""
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


def check_data(cfg: Config, tokenizer, num_image_tokens: dict[str, int]) -> None:
    """Build every dataset of every stage and make an item of each, so that a missing file, or a template that the
    tokenizer cannot write, is told before the first stage. num_image_tokens: by stage."""
    for name in cfg.stages:
        stage = stage_config(cfg, name)
        for key, config in dataset_configs(stage).items():
            try:
                dataset = build_dataset(config, stage.data, tokenizer, num_image_tokens[name])
                dataset[0]
            except ValueError as error:
                raise ValueError(f"stage {name}, {key}: {error}") from error


def dataset_configs(stage: Config) -> dict[str, dict]:
    """What a stage trains on, and is asked about, by its key in the config; with the stage's policy on refusals."""
    configs = {"data.train": stage.data.train}
    for key in ("evaluation", "validation"):
        if stage.get(key):
            configs[f"{key}.dataset"] = stage[key].dataset
    return {key: dict(dict(on_error=stage.data.on_error), **config) for key, config in configs.items()}


def pictures_of_stages(cfg: Config) -> tuple[list[str], dict]:
    """Keys of the training pictures of all stages, and every picture (key -> file), those of questions among them."""
    training, asked = [], []
    for name in cfg.stages:
        configs = dataset_configs(stage_config(cfg, name))
        training.append(configs.pop("data.train"))
        asked += configs.values()
    found = _pictures(training)
    return list(found), found | _pictures([config for config in asked if config not in training])


def _pictures(configs: list) -> dict:
    return {key: source for config in distinct(configs) for key, source in DATASETS.build(config).pictures()}


def data_fingerprint(dataset) -> str | None:
    """`ConversationDataset.fingerprint`, or None where a user's dataset has none."""
    return dataset.fingerprint() if hasattr(dataset, "fingerprint") else None


def build_collate(data: Config, model, tokenizer, cache=None, *, packed: bool = False) -> Collate:
    return Collate(
        num_image_tokens=model.encoder.num_tokens,
        views=model.views(),
        targets=[target.name for target in model.targets],
        pad_id=tokenizer.pad_id,
        image_aspect=data.image_aspect,
        max_length=data.max_length,
        on_error=data.on_error,
        max_pixels=getattr(data, "max_pixels", None) or MAX_PIXELS,
        packed=packed,
        cache=cache,
    )


def pack_limits(data: Config) -> dict | None:
    """Limits of a packed micro-batch: ``data.pack``, whose ``max_tokens`` is what padded rows could hold."""
    if not data.get("pack"):
        return None
    given = {} if data.pack is True else dict(data.pack)
    return dict(dict(max_tokens=data.micro_batch * data.max_length, max_images=None), **given)


def build_train_loader(cfg: Config, dataset, collate: Collate) -> DataLoader:
    """Optimisation steps without end, each a list of micro-batches, of samples in an order that the seed decides."""
    sampler = sampler_of(dataset, cfg.runtime.seed)
    batches = BatchSampler(sampler, size=cfg.data.global_batch, rank=get_rank(), world_size=get_world_size())
    return build_step_loader(cfg, dataset, collate, batches)


def build_step_loader(cfg: Config, dataset, collate: Collate, batch_sampler) -> DataLoader:
    """Optimisation steps, each a list of micro-batches, of the samples that ``batch_sampler`` names."""
    data = cfg.data
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        collate_fn=StepCollate(collate, micro_batch=data.micro_batch, pack=pack_limits(data), group=data.get("group")),
        num_workers=data.num_workers,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=1 if data.num_workers else None,  # an item is a whole step, in shared memory
        generator=torch.Generator().manual_seed(cfg.runtime.seed),  # so that it draws nothing from the global one
        multiprocessing_context="fork" if data.num_workers else None,
        worker_init_fn=obey_parent_alone,
    )


def num_steps(cfg: Config, num_samples: int) -> int:
    if "steps" in cfg.schedule:
        return cfg.schedule.steps
    return math.ceil(num_samples * cfg.schedule.epochs / cfg.data.global_batch)
