"""A conversation with a model about pictures, answered word by word, and what the model sees of a picture."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers.generation.streamers import BaseStreamer

from asvr.data.collate import Collate
from asvr.data.conversation import encode_segments, segments_of
from asvr.data.images import open_image
from asvr.data.templates import IMAGE_MARK, build_template
from asvr.evaluation.accuracy import right_codes
from asvr.pretrained import Pretrained


class Conversation:
    """Pictures, questions and answers so far. Pictures stand in front of the question that follows them."""

    def __init__(self, pretrained: Pretrained, *, max_new_tokens: int = 256):
        self.pretrained, self.max_new_tokens = pretrained, max_new_tokens
        self.clear()

    def clear(self) -> None:
        self.images: list[Image.Image] = []
        self.messages: list[dict] = []
        self.waiting = 0  # pictures that no question has followed yet

    def show(self, source: "str | Path | Image.Image") -> Image.Image:
        """Add a picture. Raises `Refused` where it cannot be read."""
        image = open_image(source)
        self.images.append(image)
        self.waiting += 1
        return image

    def ask(self, question: str, tell: Callable[[str], None] = lambda text: None) -> str:
        """The answer; ``tell`` gets it piece by piece as it is written. An empty one is not remembered, nor is its
        question. Raises ``ValueError`` where the conversation is longer than the LLM has positions; it stays as it was
        then."""
        marks = "".join(f"{IMAGE_MARK}\n" for _ in range(self.waiting))
        messages = [*self.messages, {"from": "human", "value": marks + question.replace(IMAGE_MARK, "").strip()}]
        prompt = dict(images=self.images, messages=messages)
        streamer = _Stream(self.pretrained.text_tokenizer, tell)
        (answer,) = self.pretrained.generate([prompt], max_new_tokens=self.max_new_tokens, streamer=streamer)
        if answer:
            self.messages, self.waiting = [*messages, {"from": "gpt", "value": answer}], 0
        return answer

    def token_maps(self) -> dict[str, np.ndarray]:
        """For the last picture and each target: where each depth's code is predicted right, 1 or 0, (rows, columns, D);
        NaN at a token that no hidden state predicts. The picture stands alone, behind the template's opening.

        Raises ``ValueError`` without a picture or a reconstruction target.
        """
        model = self.pretrained.model
        if not self.images:
            raise ValueError("no picture yet: show one first")
        if not model.targets:
            raise ValueError("this model has no reconstruction target: there is no token map")
        template, tokenizer = build_template(self.pretrained.template), self.pretrained.text_tokenizer
        messages = [{"from": "human", "value": IMAGE_MARK}]
        input_ids, labels = encode_segments(segments_of(messages, 1, template, prompt=True), tokenizer)
        collate = Collate(
            num_image_tokens=model.encoder.num_tokens,
            views=model.views(),
            pad_id=tokenizer.pad_id,
            image_aspect=self.pretrained.image_aspect,
        )
        item = dict(input_ids=input_ids, labels=labels, images=self.images[-1:], image_keys=["0"], sample_id="picture")
        batch = collate([item]).to(model.device)
        with torch.inference_mode():
            return {
                target.name: right_codes(model, target, batch)[0].unflatten(0, model.encoder.grid).cpu().numpy()
                for target in model.targets
            }


class _Stream(BaseStreamer):
    """Tells the text of new tokens once it is whole: a character may take several tokens."""

    def __init__(self, tokenizer, tell: Callable[[str], None]):
        self.tokenizer, self.tell, self.ids, self.told = tokenizer, tell, [], ""

    def put(self, value: torch.Tensor) -> None:
        self.ids += value.flatten().tolist()
        text = self.tokenizer.decode(self.ids).lstrip()
        if text.startswith(self.told) and not text.endswith("\ufffd"):
            self.tell(text[len(self.told) :])
            self.told = text

    def end(self) -> None:
        pass


def draw_token_maps(image: Image.Image, maps: dict[str, np.ndarray], file: Path) -> None:
    """The picture, and beside it a map for each target and depth: bright where the code was predicted right."""
    import matplotlib  # here: it takes a second to import

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [(name, depth, values[..., depth]) for name, values in maps.items() for depth in range(values.shape[-1])]
    figure, axes = plt.subplots(1, 1 + len(panels), figsize=(2.4 * (1 + len(panels)), 2.8), layout="constrained")
    axes[0].imshow(image)
    axes[0].set_title("picture", fontsize=9)
    for axis, (name, depth, values) in zip(axes[1:], panels, strict=True):
        axis.imshow(values, vmin=0, vmax=1, cmap="viridis")
        axis.set_title(f"{name}, depth {depth + 1}: {100 * np.nanmean(values):.0f} %", fontsize=9)
    for axis in axes:
        axis.set(xticks=[], yticks=[])
    figure.savefig(file, dpi=110)
    plt.close(figure)
