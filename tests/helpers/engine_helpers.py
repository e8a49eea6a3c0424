"""A tiny model, and the little of MMEngine's runner that hooks look at."""

from types import SimpleNamespace

import torch
from run_helpers import SIGLIP

from asvr.data.batch import IGNORE, IMAGE_TOKEN, Batch
from asvr.data.collate import Collate
from asvr.models.vlm import VLM

LLAMA = dict(
    model_type="llama",
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
)
TARGET = dict(
    name="semantic",
    tokenizer=dict(type="SemanticTokenizer", depth=2, codebook_size=4),
    head=dict(type="DepthTransformerHead", width=8, layers=1, num_heads=2),
    loss=dict(type="CodeCrossEntropy"),
    weight=0.5,
    shift=1,
)


def tiny_model(
    train=("projector", "heads", "llm"), *, reconstruction=(TARGET,), tied=False, vocab_size=32, max_positions=64
) -> VLM:
    """With a fitted tokenizer; its encoder counts as loaded from files. 4 visual tokens of an image."""
    torch.manual_seed(0)
    llama = dict(LLAMA, tie_word_embeddings=tied, max_position_embeddings=max_positions)
    model = VLM(
        encoder=dict(type="HFVisionEncoder", arch=SIGLIP),
        projector=dict(type="MLPProjector", layers=2),
        llm=dict(type="HFCausalLM", arch=llama),
        reconstruction=[dict(entry) for entry in reconstruction],
        vocab_size=vocab_size,
    )
    model.encoder.source = "a/tower"
    for tokenizer in model.tokenizers.values():
        tokenizer.fit([torch.randn(16, 4, 8)], progress=False)
    model.train_only(list(train))
    return model.train()


def collate(model: VLM) -> Collate:
    return Collate(layout=model.layout, views=model.views(), pad_id=0, on_error="skip")


def item(*, words: int = 5, image=None, sample_id: str = "rows.json:0") -> dict:
    """A sample of ``words`` words behind BOS, all but the first two supervised, with or without an image."""
    ids = [1, *([IMAGE_TOKEN] if image is not None else []), *range(3, 3 + words)]
    labels = [token if place >= 2 and token != IMAGE_TOKEN else IGNORE for place, token in enumerate(ids)]
    images = [] if image is None else [image]
    return dict(input_ids=ids, labels=labels, images=images, image_keys=[str(i) for i in images], sample_id=sample_id)


def runner(model: VLM, optim_wrapper, *, steps: int = 10) -> SimpleNamespace:
    """What a hook reads of a runner; call ``advance`` for a step on a window of batches."""
    return SimpleNamespace(
        model=model,
        optim_wrapper=optim_wrapper,
        param_schedulers=[],
        hooks=[],
        call_hook=lambda *args, **kwargs: None,
        iter=0,
        max_iters=steps,
        train_loop=SimpleNamespace(data_time=0.0, stop=None),
    )


def advance(state: SimpleNamespace, window: list[Batch], *hooks) -> dict:
    logs = state.model.train_step(window, state.optim_wrapper)
    state.iter += 1
    for hook in hooks:
        hook.after_train_iter(state, state.iter - 1, window, logs)
    return logs


def without_bias_of_keys(key: str, value: torch.Tensor) -> torch.Tensor:
    """Attention does not depend on it, so that its gradient is rounding alone, which Adam makes large."""
    if key.endswith("k_proj.bias"):
        return value[:0]
    if key.endswith("qkv.bias"):
        q, _, v = value.chunk(3)
        return torch.cat([q, v])
    return value
