"""A conversation with a model about images. Answers come word by word. It also gives the maps of an image."""

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
    """A conversation: its images, questions and answers. Images come before the question that follows them.

    Raises ``ValueError`` if the model has no text tokenizer, because it cannot be asked.
    """

    def __init__(self, pretrained: Pretrained, *, max_new_tokens: int = 256):
        if pretrained.text_tokenizer is None:
            raise ValueError(NO_TEXT_TOKENIZER)
        self.pretrained, self.max_new_tokens = pretrained, max_new_tokens
        self.clear()

    def clear(self) -> None:
        self.images: list[Image.Image] = []
        self.messages: list[dict] = []
        self.waiting = 0  # the number of images since the last question

    def show(self, source: "str | Path | Image.Image") -> Image.Image:
        """Add an image. Raises `Refused` if it cannot be read."""
        image = open_image(source)
        self.images.append(image)
        self.waiting += 1
        return image

    def ask(self, question: str, send: Callable[[str], None] = lambda text: None) -> str:
        """Ask a question and return the answer. ``send`` gets the answer piece by piece.

        An empty answer is not kept, and its question is not kept either. Raises ``ValueError`` if the conversation is
        too long for the LLM. The conversation is then unchanged.
        """
        marks = "".join(f"{IMAGE_MARK}\n" for _ in range(self.waiting))
        messages = [*self.messages, {"from": "human", "value": marks + question.replace(IMAGE_MARK, "").strip()}]
        prompt = dict(images=self.images, messages=messages)
        streamer = _Stream(self.pretrained.text_tokenizer, send)
        (answer,) = self.pretrained.generate([prompt], max_new_tokens=self.max_new_tokens, streamer=streamer)
        answer = answer.replace(IMAGE_MARK, "").strip()  # in the next prompt the mark would count as an image
        if answer:
            self.messages, self.waiting = [*messages, {"from": "gpt", "value": answer}], 0
        return answer

    def token_maps(self) -> list[TargetMap]:
        """The maps of the last image for all targets, see `target_maps`.

        Raises ``ValueError`` if there is no image or no reconstruction target.
        """
        if not self.images:
            raise ValueError("no image yet: show one first")
        if not self.pretrained.model.targets:
            raise ValueError("this model has no reconstruction target: there is no token map; another stage's may have")
        return target_maps(self.pretrained, self.images[-1])

    def attention(self) -> np.ndarray:
        """The attention of the last answer to each token of the last image, by layer (L, rows, columns).

        See `answer_attention`. Raises ``ValueError`` as it does, and if there is no answer.
        """
        if not self.messages:
            raise ValueError("no answer yet: ask first")
        return answer_attention(self.pretrained, self.images, self.messages)


class _Stream(BaseStreamer):
    """Passes on the text of new tokens. It waits until a character is complete, because one may need several tokens."""

    def __init__(self, tokenizer, send: Callable[[str], None]):
        self.tokenizer, self.send, self.ids, self.sent = tokenizer, send, [], ""

    def put(self, value: torch.Tensor) -> None:
        self.ids += value.flatten().tolist()
        text = self.tokenizer.decode(self.ids).lstrip()
        if text.startswith(self.sent) and not text.endswith("\ufffd"):
            self.send(text[len(self.sent) :])
            self.sent = text

    def end(self) -> None:
        """Pass on the rest: an answer that is cut in the middle of a character ends as `Pretrained.chat` gives it."""
        text = self.tokenizer.decode(self.ids).lstrip()
        if text.startswith(self.sent):
            self.send(text[len(self.sent) :])
            self.sent = text
