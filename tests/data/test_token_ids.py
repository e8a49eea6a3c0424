"""Whether two text tokenizers give a text the same ids."""

import json

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from asvr.data.text_tokenizer import ByteLevelBPE, HFTokenizer, TextTokenizer
from asvr.data.token_ids import other_ids


class Texts:
    """A corpus of a few sentences."""

    def __init__(self, *texts):
        self.own = texts

    def texts(self, template=None):
        return iter(self.own * 20)


def bpe(*texts, **options):
    return ByteLevelBPE(vocab_size=290, corpus=Texts(*texts), **options)


def test_the_files_of_a_tokenizer_have_its_ids(tmp_path):
    own = bpe("a red house", "a green house")
    own.save_pretrained(tmp_path)
    assert other_ids(own, HFTokenizer(name=str(tmp_path))) is None


def test_tokens_that_only_the_other_one_has_do_not_count(tmp_path):
    own = bpe("a red house", "a green house")
    own.save_pretrained(tmp_path)
    more = HFTokenizer(name=str(tmp_path))
    more.hf.add_special_tokens(dict(additional_special_tokens=["<image>"]))
    assert own.fingerprint() != more.fingerprint() and other_ids(own, more) is None
    assert other_ids(more, own) == f"1 of {len(own) + 1} tokens have other ids: '<image>' is {len(own)} and None there"


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (dict(texts=["a red house", "a blue mouse"]), "tokens have other ids: "),
        (dict(texts=["a red house", "a green house"], special_tokens=["<x>"]), " is 3 and 4 there"),
    ],
)
def test_other_ids_are_told(other, words):
    own = bpe("a red house", "a green house")
    assert words in other_ids(own, bpe(*other.pop("texts"), **other))


def test_a_tokenizer_that_splits_a_text_otherwise_is_told():
    """The vocabulary is the same, and the order of merges decides."""
    own = bpe("a red house", "a green house")
    spec = json.loads(own.hf.backend_tokenizer.to_str())
    spec["model"]["merges"] = []
    hf = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(spec)), bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    assert other_ids(own, TextTokenizer(hf)) == "the text 'A house.' has other tokens"
