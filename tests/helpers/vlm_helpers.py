"""Tiny models, rows of every kind, and the objective written out sample by sample."""

import torch
import torch.nn.functional as F
from PIL import Image
from run_helpers import SIGLIP

from asvr.data.batch import IGNORE, IMAGE_TOKEN, Batch
from asvr.data.collate import Collate
from asvr.engine.optim import AutocastOptimWrapper
from asvr.models.vlm import VLM

LLAMA = dict(
    model_type="llama",
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=64,
)
ENCODER = dict(type="HFVisionEncoder", arch=SIGLIP)
RESNET = dict(type="TimmEncoder", model="resnet10t", image_size=64)
DEPTH_HEAD = dict(type="DepthTransformerHead", width=8, layers=1, num_heads=2)
SEMANTIC = dict(
    name="semantic",
    tokenizer=dict(type="SemanticTokenizer", depth=3, codebook_size=6),
    head=DEPTH_HEAD,
    shift=1,
)
PIXEL = dict(
    name="pixel",
    tokenizer=dict(
        type="PixelTokenizer",
        image_size=4,
        arch=dict(
            embed_dim=4,
            num_embeddings=7,
            latent_channels=8,
            base_channels=32,
            channel_multiplier=[1, 1],
            num_res_blocks=1,
        ),
    ),
    head=dict(type="LinearHead"),
    shift=0,
)
VOCAB = 32
TRAINED = ("projector", "heads", "llm")


def build(
    *,
    reconstruction=(SEMANTIC,),
    train=TRAINED,
    encoder=ENCODER,
    llm=LLAMA,
    layout=None,
    visual_attention="causal",
    seed=0,
    fit=True,
    vocab_size=VOCAB,
) -> VLM:
    """A model whose tokenizers are fitted on noise; its norms and biases are not their initial ones and zeros."""
    torch.manual_seed(seed)
    model = VLM(
        encoder=dict(encoder),
        projector=dict(type="MLPProjector"),
        llm=dict(type="HFCausalLM", arch=llm),
        reconstruction=[dict(entry) for entry in reconstruction],
        layout=layout,
        visual_attention=visual_attention,
        vocab_size=vocab_size,
    )
    with torch.no_grad():
        for part in (model.llm, model.projector, model.heads):
            for parameter in part.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    for target in model.targets:
        tokenizer = getattr(target, "tokenizer", None)
        if hasattr(tokenizer, "fit") and fit:
            size = (32, *tokenizer.transform.size)
            pixels = torch.randn(size[0], 3, *size[1:])
            tokenizer.fit([tokenizer.features(pixels)], progress=False)
        elif hasattr(tokenizer, "trained"):
            tokenizer.trained.fill_(True)
    model.train_only(list(train))
    return model.train()


def picture(seed: int) -> Image.Image:
    array = torch.randint(0, 256, (10, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(array.numpy())


def row(text: str, seed: int = 0, supervised: int = 3) -> dict:
    """A sample from a sketch: ``b`` BOS, ``w`` a word, ``i`` an image; the last ``supervised`` words carry a loss."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(3, VOCAB, (len(text),), generator=generator).tolist()
    ids = [{"b": 1, "i": IMAGE_TOKEN}.get(letter, word) for letter, word in zip(text, words, strict=True)]
    labels = [IGNORE] * len(ids)
    for place in [n for n, letter in enumerate(text) if letter == "w"][-supervised:] if supervised else []:
        labels[place] = ids[place]
    images = [picture(seed * 10 + n) for n in range(text.count("i"))]
    keys = [f"{seed}-{n}" for n in range(len(images))]
    return dict(input_ids=ids, labels=labels, images=images, image_keys=keys, sample_id=f"rows.json:{seed}")


def rows() -> list[dict]:
    """Captioned, text-only, two images, image first, image-only, an image between words."""
    sketches = [("bwiwwww", 2), ("bwwwww", 3), ("biwiwww", 2), ("iwww", 1), ("bi", 0), ("bwwiw", 1)]
    return [row(text, seed, supervised) for seed, (text, supervised) in enumerate(sketches)]


def collate(model: VLM, items: list[dict], **kwargs) -> Batch:
    make = Collate(
        layout=model.layout,
        views=model.views(),
        targets=[target.name for target in model.targets],
        pad_id=0,
        **kwargs,
    )
    return make(items)


def objective(model: VLM, items: list[dict]) -> dict[str, torch.Tensor]:
    """Summed losses by definition: one sample at a time, no padding, one position at a time."""
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}

    def add(name, loss):
        sums[name] = sums.get(name, 0) + loss
        counts[name] = counts.get(name, 0) + 1

    words = model.llm.model.get_input_embeddings().weight
    for item in items:
        pieces, labels, starts = [], [], []
        features = codes = None
        if item["images"]:
            views = {
                name: torch.stack([transform(image) for image in item["images"]])
                for name, transform in model.views().items()
            }
            features = model.encoder(views["encoder"])
            codes = {t.name: true_codes(model, t, views) for t in model.targets}
        image = 0
        for token, label in zip(item["input_ids"], item["labels"], strict=True):
            if token == IMAGE_TOKEN:
                starts.append(len(labels))
                pieces.append(model.projector(features[image]))
                labels += [IGNORE] * len(pieces[-1])
                image += 1
            else:
                pieces.append(words[token][None])
                labels.append(label)
        out = model.llm.model.model(inputs_embeds=torch.cat(pieces)[None], output_hidden_states=True)
        for t, label in enumerate(labels):
            if label != IGNORE and t > 0:
                logits = model.llm.model.lm_head(out.last_hidden_state[0, t - 1])
                add("text", F.cross_entropy(logits[None], torch.tensor([label])))
        for target in model.targets:
            hidden = out.last_hidden_state[0] if target.tap == -1 else out.hidden_states[target.tap][0]
            for i, start in enumerate(starts):
                for n in range(model.encoder.num_tokens):
                    if start + n - target.shift >= 0:
                        code_D = codes[target.name][i, n]
                        add(target.name, code_loss(target, hidden[start + n - target.shift], code_D))
    return dict(sums=sums, counts=counts)


def true_codes(model, target, views):
    with torch.no_grad():
        if target.shares_encoder:
            return target.tokenizer.quantize(model.encoder(views["encoder"]))
        return target.tokenizer.encode(views[target.name])


def code_loss(target, hidden_H, code_D):
    vectors_DC = target.tokenizer.embed(code_D[None])
    states_DW = target.head(hidden_H[None], vectors_DC)[0]
    losses = [
        F.cross_entropy(classifier(states_DW[d])[None], code_D[d : d + 1])
        for d, classifier in enumerate(target.head.classifiers)
    ]
    return sum(losses) / len(losses)


class Recorder(torch.optim.SGD):
    """Keeps the gradients it is given and changes nothing."""

    def step(self):
        self.gradients = [p.grad for group in self.param_groups for p in group["params"]]


def recorder(model: VLM, *, precision: str = "float32", clip_grad: float | None = None) -> AutocastOptimWrapper:
    trained = [p for p in model.parameters() if p.requires_grad]
    return AutocastOptimWrapper(Recorder(trained, lr=1.0), precision=precision, clip_grad=clip_grad)


def step_gradients(model: VLM, window: list[Batch], **kwargs) -> tuple[dict, dict]:
    """The gradients that the optimiser gets in one step, by parameter name, and the step's logs."""
    wrapper = recorder(model, **kwargs)
    logs = model.train_step(window, wrapper)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    return dict(zip(names, wrapper.optimizer.gradients, strict=True)), logs


def gradients_of(loss: torch.Tensor, model: VLM) -> dict[str, torch.Tensor]:
    """By parameter name; zeros where the loss does not depend on it."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), found, strict=True)}
