"""Small tokenizers, built in the test: a byte-level one and a sentencepiece-like one; and a layout of images."""

import json
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from asvr.data.layouts import WholeImage
from asvr.data.text_tokenizer import ByteLevelBPE, TextTokenizer

CHATML = ["<|im_start|>", "<|im_end|>"]
TEXTS = [
    "A chat between a curious user and an artificial intelligence assistant. USER: what is in the picture? ",
    " ASSISTANT: a small red house stands on the hill",
    "[INST] what color is the car? [/INST] it is blue ",
    "user\nhow many dogs are there?",
    "assistant\nthere are two dogs in the image.",
] * 3


class Corpus:
    def texts(self, template=None):
        yield from TEXTS


@cache
def byte_level() -> TextTokenizer:
    return ByteLevelBPE(vocab_size=420, corpus=Corpus(), special_tokens=CHATML)


@cache
def sentencepiece_like(scheme: str = "first") -> TextTokenizer:
    """A BPE with Metaspace and byte fallback, as Llama's: ``first`` is today's form, ``always`` the legacy one."""
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    # As in Llama's vocabulary, no token holds a line break and something else.
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme=scheme, split=True), pre_tokenizers.Split("\n", "isolated")]
    )
    special = ["<unk>", "<s>", "</s>", *[f"<0x{i:02X}>" for i in range(256)], *CHATML]
    bpe.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=480, special_tokens=special, show_progress=False))
    # Training makes every one of them special; only the real ones are.
    vocab, merges = bpe.get_vocab(), _merges(bpe)
    bpe = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bpe.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ("<unk>", "<s>", "</s>", *CHATML)])
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return TextTokenizer(
        PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    )


def _merges(bpe: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]


TOKENIZERS = {
    "byte_level": byte_level,
    "sentencepiece": sentencepiece_like,
    "legacy sentencepiece": lambda: sentencepiece_like("always"),
}


def chat(*texts: str) -> list[dict]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


class FixedTokens(WholeImage):
    """So many tokens an image, whatever encodes it."""

    def __init__(self, num_tokens: int):
        self.grid, self.num_cells, self.transform = (1, num_tokens), num_tokens, None
