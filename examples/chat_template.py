"""A chat template of your own, in the form of Llama 3's chat models.

A template says which pieces of text follow one another, and which of them the model learns to write. It never sees
token ids, because the library encodes piece by piece. ``asvr train examples/chat_template``
"""

from collections.abc import Iterator
from dataclasses import dataclass

from asvr.data.templates import BOS, Round, Segment, Template, question_segments
from asvr.registry import TEMPLATES

BEGIN, END = Segment("token", "<|start_header_id|>"), Segment("token", "<|end_header_id|>")
TURN = "<|eot_id|>"


@TEMPLATES.register_module()
@dataclass(frozen=True, kw_only=True)
class Llama3(Template):
    """``<|start_header_id|>user<|end_header_id|>``, two line ends, the text, ``<|eot_id|>``; no system text by default.

    ``token`` segments name special tokens, which the text tokenizer must have. Letters that look like one stay letters.
    """

    system: str = ""

    @property
    def stop(self) -> str:
        """The special token that ends an answer. It is needed if this is not the tokenizer's EOS."""
        return TURN

    def segments(self, rounds: list[Round]) -> Iterator[Segment]:
        """A `Round` is a question and its answer. If the model has to write the answer, it is None. The segments then
        end in front of it."""
        yield BOS
        if self.system:
            yield from self.header("system")
            yield Segment("text", self.system)
            yield Segment("token", TURN)
        for turn in rounds:
            yield from self.header("user")
            yield from question_segments(turn.question)  # the text, and the images at their marks
            yield Segment("token", TURN)
            yield from self.header("assistant")
            if turn.answer is not None:
                yield Segment("text", turn.answer, supervised=True)
                yield Segment("token", TURN, supervised=True)

    def header(self, role: str) -> Iterator[Segment]:
        yield BEGIN
        yield Segment("text", role)
        yield END
        yield Segment("text", "\n\n")
