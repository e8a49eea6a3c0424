"""Selects the weights that a checkpoint holds: those that no other file holds. Other weights have fingerprints."""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from asvr.models.component import apart_of, fingerprint_in, fingerprint_of, source_of
from asvr.models.hf import DTYPES
from asvr.models.shards import untied_state_dict
from asvr.models.trainable import is_whole
from asvr.models.tree import is_trained


def own_components(model: nn.Module) -> dict[str, nn.Module]:
    """The components whose weights a checkpoint holds, in full or in part, see `saved_tensors`."""
    return {name: module for name, module in model.components().items() if _is_saved(name, module)}


def _is_saved(name: str, module: nn.Module) -> bool:
    """Whether a checkpoint holds weights of a component. Those of tokenizers are in folders of their own."""
    return not name.startswith("tokenizer.") and (
        source_of(module) is None or bool(apart_of(module)) or is_trained(module)
    )


def saved_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors that a checkpoint holds of one of `own_components`.

    If a component was initialised in the run, or is trained in full, these are all its tensors. Otherwise they are the
    trained tensors, the buffers if any tensor is trained, and the tensors that are not in its files (``apart``). The
    other tensors are frozen and in the files they came from. The checkpoint has only their fingerprint."""
    tensors = untied_state_dict(module)
    if source_of(module) is None or is_whole(module):
        return tensors
    parameters = dict(module.named_parameters())
    kept = {key for key, parameter in parameters.items() if parameter.requires_grad}
    kept |= tensors.keys() - parameters.keys() if kept else set()
    return {key: value for key, value in tensors.items() if key in kept | apart_of(module)}


def frozen_fingerprints(model: nn.Module) -> dict[str, dict]:
    """The fingerprints of the weights that a checkpoint does not hold, by component.

    If it holds a part of a component, ``saved`` lists that part. If weights are sharded, every process calls it."""
    found = {}
    for name, module in model.components().items():
        saved = saved_tensors(module) if _is_saved(name, module) else {}
        if not _is_saved(name, module):
            own = dict(fingerprint=fingerprint_of(module), **_casts(name, module))
        elif saved.keys() != untied_state_dict(module).keys():
            own = dict(
                fingerprint=fingerprint_in(module, None, saved), **_casts(name, module, saved), saved=list(saved)
            )
        else:
            continue
        found[name] = dict(source=source_of(module), **own)
    return found


def _casts(name: str, module: nn.Module, saved: Collection[str] = ()) -> dict:
    """The fingerprints of float32 weights in half precision, since a later stage may use them in that dtype."""
    dtypes = {parameter.dtype for key, parameter in module.named_parameters() if key not in saved}
    if name.startswith("tokenizer.") or dtypes != {torch.float32}:
        return {}
    halves = [dtype for dtype in DTYPES.values() if dtype != torch.float32]
    return dict(casts=[fingerprint_in(module, dtype, saved) for dtype in halves])
