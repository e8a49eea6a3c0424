"""Compares the token ids of two text tokenizers."""

from asvr.base.text import short
from asvr.data.refusals import Refused
from asvr.data.text_tokenizer import PROBES, TextTokenizer

FEW = 3  # tokens that a message names


def other_ids(tokenizer: TextTokenizer, there: TextTokenizer) -> str | None:
    """How the ids of a text tokenizer differ from those of another one, in words; None if they are equal.

    Tokens that only ``there`` has do not count: a model of its ids knows all tokens of the first one too."""
    if tokenizer.fingerprint() == there.fingerprint():
        return None
    own, other = (getattr(getattr(each, "hf", None), "get_vocab", dict)() for each in (tokenizer, there))
    if wrong := sorted((token for token in own if other and other.get(token) != own[token]), key=own.__getitem__):
        named = ", ".join(f"{short(token)} is {own[token]} and {other.get(token)} there" for token in wrong[:FEW])
        return f"{len(wrong)} of {len(own)} tokens have other ids: {named}"
    for text in PROBES:
        if _ids(tokenizer, text) != _ids(there, text):
            return f"the text {text!r} has other tokens"
    if (tokenizer.bos_id, tokenizer.eos_id) != (there.bos_id, there.eos_id):
        return f"BOS and EOS are {tokenizer.bos_id} and {tokenizer.eos_id}, and {there.bos_id} and {there.eos_id} there"
    return None


def _ids(tokenizer: TextTokenizer, text: str) -> list[int] | str:
    try:
        return tokenizer.encode(text)
    except Refused as error:
        return error.reason
