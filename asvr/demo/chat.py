"""A conversation with a model about images, answered word by word, and what the model sees of an image."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers.generation.streamers import BaseStreamer

from asvr.data.images import open_image
from asvr.data.templates import IMAGE_MARK
from asvr.demo.maps import TargetMap, answer_attention, target_maps
from asvr.pretrained import NO_TEXT_TOKENIZER, Pretrained


class Conversation:
    """Images, questions and answers so far. Images stand in front of the question that follows them.

    Raises ``ValueError`` where the model has no text tokenizer: it cannot be asked.
    """

    def __init__(self, pretrained: Pretrained, *, max_new_tokens: int = 256):
        if pretrained.text_tokenizer is None:
            raise ValueError(NO_TEXT_TOKENIZER)
        self.pretrained, self.max_new_tokens = pretrained, max_new_tokens
        self.clear()

    def clear(self) -> None:
        self.images: list[Image.Image] = []
        self.messages: list[dict] = []
        self.waiting = 0  # images that no question has followed yet

    def show(self, source: "str | Path | Image.Image") -> Image.Image:
        """Add an image. Raises `Refused` where it cannot be read."""
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
        answer = answer.replace(IMAGE_MARK, "").strip()  # as letters: in the next prompt it would stand for an image
        if answer:
            self.messages, self.waiting = [*messages, {"from": "gpt", "value": answer}], 0
        return answer

    def token_maps(self) -> list[TargetMap]:
        """What the model knows about the last image, target by target; see `target_maps`.

        Raises ``ValueError`` without an image or a reconstruction target.
        """
        if not self.images:
            raise ValueError("no image yet: show one first")
        if not self.pretrained.model.targets:
            raise ValueError("this model has no reconstruction target: there is no token map; another stage's may have")
        return target_maps(self.pretrained, self.images[-1])

    def attention(self) -> np.ndarray:
        """How much the last answer looks at each token of the last image, by layer (L, rows, columns); see
        `answer_attention`, also for the errors. ``ValueError`` without an answer, too."""
        if not self.messages:
            raise ValueError("no answer yet: ask first")
        return answer_attention(self.pretrained, self.images, self.messages)


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
