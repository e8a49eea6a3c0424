"""Visual codes as additional words of the LLM's vocabulary: one softmax runs over words and codes.

Legend: ``P`` supervised visual positions, ``H`` LLM width, ``T`` words of the LM head, ``V`` visual codes.
"""

import torch
from torch import Tensor, nn

from asvr.models.component import portable_of
from asvr.models.losses import JoinedClassifier
from asvr.models.targets.base import Target
from asvr.models.targets.codes import CodeTarget
from asvr.models.targets.seen import Seen
from asvr.registry import TARGETS


@TARGETS.register_module()
class SharedVocabularyTarget(CodeTarget):
    """Codes as additional words of the LLM: one softmax over words and codes (Youtu-VL, arXiv 2601.19798).

    It is a `CodeTarget` with codes of depth 1. The softmax of a visual position runs over the ``T`` rows of the LM head
    and ``V`` rows of codes. There is no other head.

    joint_text: True: the softmax of text positions runs over words and codes too, as in the paper, as long as this
        target's weight is above 0. False: text positions use only the words, as without this target.

    The rows of codes are this target's own weights, and are trained with ``heads``. The LM head is trained with the
    LLM, and gets gradients from visual positions too. Answers are generated with the LM head alone, so no visual code
    is ever written, and an export leaves the rows out. ``correct`` counts a code if its logit is the largest of all
    words and codes. `predict` returns the most probable code, with its probability among words and codes.

    The other arguments are those of `CodeTarget`; ``head`` and ``tap`` cannot be set. Raises ``ValueError`` for codes
    of another depth, for ``shift=0`` (a position would predict the next word and its own code with one softmax), for an
    LLM without ``vocab_size``, and for an LLM that caps or scales its logits.
    """

    def __init__(
        self,
        *,
        name: str,
        tokenizer: dict,
        encoder,
        llm,
        shift: int | None = None,
        joint_text: bool = True,
        loss: dict | None = None,
        weight: float | dict = 1.0,
        supervise: int | dict | None = None,
        resample: str | None = None,
        fit: dict | None = None,
        load_weights: bool = True,
        key: str = "target",
    ):
        if shift != 1:
            raise ValueError(f"{key}.shift={shift!r}: the LM head predicts the next token: set shift=1")
        if not isinstance(getattr(llm, "vocab_size", None), int):
            raise ValueError(f"{key}: {type(llm).__name__} has no vocab_size, the number of its LM head's words")
        if getattr(llm, "logit_changes", None):
            raise ValueError(
                f"{key}: {type(llm).__name__} caps or scales its logits, but those of codes are not: use another LLM"
            )
        super().__init__(
            name=name,
            tokenizer=tokenizer,
            head=dict(type="LinearHead", bias=False),
            encoder=encoder,
            llm=llm,
            shift=shift,
            loss=loss,
            weight=weight,
            supervise=supervise,
            resample=resample,
            fit=fit,
            load_weights=load_weights,
            key=key,
        )
        if self.tokenizer.depth != 1:
            raise ValueError(
                f"{key}.tokenizer: codes of depth {self.tokenizer.depth}, expected depth=1: a visual token is one word "
                "of the vocabulary"
            )
        self.llm = (llm,)  # in a tuple, so that it is not registered as a submodule
        self.num_words, self.joint_text = llm.vocab_size, joint_text

    @property
    def rows(self) -> nn.Linear:
        """The part of the classifier that belongs to the visual codes."""
        return self.head.classifiers[0]

    @property
    def classifiers(self) -> list[nn.Module]:
        """Built at each use, because a transform may have replaced the LM head."""
        return [JoinedClassifier(self.llm[0].lm_head, self.rows)]

    @property
    def text_rows(self) -> nn.Module | None:
        return self.rows if self.joint_text and self.counts else None

    def loss(self, seen: Seen, truth: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        source_P, token_P = self.places(seen)
        codes_P1 = self.codes_by_cell(truth, seen.batch).flatten(0, 1)
        codes_P1 = codes_P1 if token_P is None else codes_P1[token_P]
        hidden_P1H = seen.hidden[self.tap][source_P][:, None]  # in the same precision as for text
        loss, correct_D = self.criterion(hidden_P1H, self.classifiers, self.num_words + codes_P1)
        return loss, dict(correct=correct_D)

    @torch.no_grad()
    def predict(self, hidden_PH: Tensor, codes_PD: Tensor, token_P: Tensor | None = None) -> tuple[Tensor, Tensor]:
        logits_PV = self.classifiers[0](hidden_PH).float()
        largest = logits_PV[:, self.num_words :].max(-1, keepdim=True)
        return largest.indices, (largest.values - logits_PV.logsumexp(-1, keepdim=True)).exp()

    def portable(self, config: dict) -> dict:
        return dict(Target.portable(self, config), tokenizer=portable_of(self.tokenizer, config["tokenizer"]))
