"""Peak memory of a process: on CUDA what tensors take, on the CPU what they add to the process.

A process that has loaded torch and run one step of any size holds over a gigabyte of code and work space. That says
nothing about a model, so `Peak` takes a tiny step first and counts from there.
"""

from pathlib import Path

import torch

from asvr.engine.optim import build_optim_wrapper
from asvr.models.attention import AUTO, use_attention
from asvr.models.vlm import VLM
from asvr.profiling.memory import full_batch

TOWER = dict(
    model_type="siglip_vision_model",
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=2,
    num_attention_heads=1,
    image_size=28,
    patch_size=14,
)
LLAMA = dict(model_type="llama", hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
TINY = dict(
    encoder=dict(type="HFVisionEncoder", arch=TOWER),
    projector=dict(type="MLPProjector"),
    llm=dict(type="HFCausalLM", arch=LLAMA, activation_checkpointing="selective"),
    reconstruction=[
        dict(
            name="semantic",
            tokenizer=dict(type="SemanticTokenizer", depth=2, codebook_size=4),
            head=dict(type="DepthTransformerHead", width=8, layers=1, num_heads=1, activation_checkpointing="full"),
            shift=1,
        )
    ],
    vocab_size=16,
)
OPTIM = dict(lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0, clip_grad=1.0, precision="float32")


class Peak:
    """Bytes at the peak since it was made; to be made before the model."""

    def __init__(self, device: torch.device):
        self.device, self.before = device, 0
        if device.type != "cuda":
            _tiny_step()
            self.before = _resident("VmRSS")

    def bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return _resident("VmHWM") - self.before


def _tiny_step() -> None:
    model = VLM(**TINY)
    model.train_only(["projector", "llm", "heads"])
    use_attention(model, AUTO, None)
    model.train().train_step([full_batch(model, 1, 16)], build_optim_wrapper(model, OPTIM))


def _resident(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{field}:")[1].split()[0])
