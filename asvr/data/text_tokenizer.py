"""Text tokenizers: one narrow class over a Hugging Face fast tokenizer."""

import hashlib
import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from asvr import zoo
from asvr.data.refusals import Refused
from asvr.models.hf import without_warnings
from asvr.registry import DATASETS, TEXT_TOKENIZERS

BYTES = 256


class TextTokenizer:
    """Encodes text so that pieces put together are one text, and so that no text can write a control token.

    hf: the Hugging Face fast tokenizer itself. bos_id: what the tokenizer puts in front of a text, or
    None where it puts nothing there (Qwen). pad_id: fills rows; it is never learned.
    prefix_after_control: whether a text right behind a special token gets a prefix space.
    """

    def __init__(self, hf: PreTrainedTokenizerFast):
        self.hf = hf
        self.bos_id = hf.bos_token_id if hf("")["input_ids"][:1] == [hf.bos_token_id] else None
        self.eos_id = hf.eos_token_id
        if self.eos_id is None:
            raise ValueError(f"the tokenizer {hf.name_or_path!r} has no EOS token, which ends an answer")
        fallbacks = (hf.pad_token_id, hf.unk_token_id, hf.eos_token_id)
        self.pad_id = next(token for token in fallbacks if token is not None)
        # What no text may write. Characters that the vocabulary lacks do become the unknown token.
        self._control = frozenset(hf.all_special_ids) - {hf.unk_token_id}
        spec = json.loads(hf.backend_tokenizer.to_str())
        self.prefix_after_control = _prefixes_every_piece(spec)
        self._alone = _text_only(spec)
        without_prefix = _without_prefix(spec)
        self._continuing = self._alone if without_prefix == spec else _text_only(without_prefix)

    def encode(self, text: str, *, control: bool = False, continues: bool = False) -> list[int]:
        """Token ids of a text, without BOS and EOS.

        control: the text names one special token, and its id is returned. Otherwise the letters of a
        special token are ordinary letters. continues: the text goes on from another one, so a tokenizer
        that puts a space in front of a text (sentencepiece) does not.

        Raises: ValueError for a control token that the tokenizer does not have; `Refused` for a text that writes one
        all the same, as a vocabulary can that has control tokens among its words.
        """
        if not control:
            ids = (self._continuing if continues else self._alone).encode(text, add_special_tokens=False).ids
            if not self._control.isdisjoint(ids):
                found = self.hf.convert_ids_to_tokens(next(token for token in ids if token in self._control))
                raise Refused(f"with this tokenizer the text writes the control token {found!r}", "control token")
            return ids
        if text not in self.hf.all_special_tokens and not self._is_special(text):
            raise ValueError(
                f"the tokenizer {self.hf.name_or_path!r} has no special token {text!r}, which the template writes: "
                f"choose another template, or a tokenizer with it (ByteLevelBPE takes special_tokens=[{text!r}])"
            )
        return [self.hf.convert_tokens_to_ids(text)]

    def _is_special(self, text: str) -> bool:
        return any(token.content == text and token.special for token in self.hf.added_tokens_decoder.values())

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids. Special tokens and image places are left out."""
        return self.hf.decode([int(i) for i in ids if i >= 0], skip_special_tokens=True)

    def __len__(self) -> int:
        return len(self.hf)

    @cached_property
    def num_ids(self) -> int:
        """The largest id and one: the rows that embeddings need. More than its length where ids have gaps."""
        return max(self.hf.get_vocab().values()) + 1

    def save_pretrained(self, folder: str | Path) -> None:
        """Write Hugging Face's tokenizer files; ``HFTokenizer(name=folder)`` reads them."""
        self.hf.save_pretrained(str(folder))

    def fingerprint(self) -> str:
        """SHA-256 (16 hex digits) of everything that decides the ids of a text."""
        parts = [self.hf.backend_tokenizer.to_str(), str((self.bos_id, self.eos_id, self.pad_id))]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _text_only(spec: dict) -> Tokenizer:
    """The tokenizer with no special token, so that none can come out of a text."""
    added = [token for token in spec["added_tokens"] if not token["special"]]
    plain = spec | dict(added_tokens=added, post_processor=None, truncation=None, padding=None)
    return Tokenizer.from_str(json.dumps(plain))


def _parts(spec) -> Iterable[dict]:
    """A normalizer or pre-tokenizer and, where it is a sequence, its members."""
    if spec:
        yield spec
        for part in spec.get("normalizers", []) + spec.get("pretokenizers", []):
            yield from _parts(part)


def _prefixes_every_piece(spec: dict) -> bool:
    return any(
        part["type"] == "Prepend" or part.get("prepend_scheme") == "always" or part.get("add_prefix_space") is True
        for key in ("normalizer", "pre_tokenizer")
        for part in _parts(spec[key])
    )


def _without_prefix(spec: dict) -> dict:
    """The same tokenizer, putting no space in front of a text."""
    spec = json.loads(json.dumps(spec))
    for key in ("normalizer", "pre_tokenizer"):
        for part in _parts(spec[key]):
            if part["type"] == "Prepend":
                part["prepend"] = ""
            if "prepend_scheme" in part:
                part["prepend_scheme"] = "never"
            if "add_prefix_space" in part:
                part["add_prefix_space"] = False
    return spec


# Any of these makes a folder a text tokenizer's.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


@TEXT_TOKENIZERS.register_module()
class HFTokenizer(TextTokenizer):
    """The tokenizer of a Hugging Face model, from a local folder. Code in the folder is never run.

    Raises: `asvr.zoo.MissingWeights` where there is no such folder; ValueError where it holds no
    tokenizer that can be read without running code of its own.
    """

    def __init__(self, *, name: str):
        folder = zoo.require(name, what="text tokenizer")
        try:
            with without_warnings():
                hf = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        except (ValueError, OSError, ImportError, KeyError) as error:
            raise ValueError(_unreadable(name, folder, error)) from error
        if not hf.is_fast:
            raise ValueError(f"the tokenizer of {name!r} ({folder}) has no fast form: expected a tokenizer.json")
        super().__init__(hf)


def _unreadable(name: str, folder: Path, error: Exception) -> str:
    if folder.is_dir() and not any((folder / file).is_file() for file in TOKENIZER_FILES):
        return f"{folder}: no text tokenizer is in it, expected one of {', '.join(TOKENIZER_FILES)}"
    message = f"the tokenizer of {name!r} ({folder}) cannot be read: {error}"
    config = folder / "tokenizer_config.json"
    if config.is_file() and "AutoTokenizer" in json.loads(config.read_text(encoding="utf-8")).get("auto_map", {}):
        message += (
            "\nIt needs Python code out of the model's folder, which is never run here (trust_remote_code is off): "
            "convert it to a tokenizer.json, or use a model whose tokenizer transformers knows."
        )
    elif (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file():
        message += "\nThe folder has a tokenizer.model only; reading it needs: pip install sentencepiece protobuf"
    return message


@TEXT_TOKENIZERS.register_module()
class ByteLevelBPE(TextTokenizer):
    """A byte-level BPE learned on the texts of a dataset; the same texts give the same tokenizer.

    vocab_size: at most this many tokens, bytes and special tokens included. corpus: a dataset, or its
    config, with ``texts(template)``. template: learn on the rows as this template writes them, so that
    its own words ("USER:") become tokens too. special_tokens: further ones than BOS, EOS and padding.
    """

    def __init__(self, *, vocab_size: int, corpus, template=None, special_tokens: Iterable[str] = ()):
        bos, eos, pad = "<s>", "</s>", "<pad>"
        special = [pad, bos, eos, *special_tokens]
        if vocab_size < BYTES + len(special):
            raise ValueError(
                f"text_tokenizer.vocab_size={vocab_size} is too small: {BYTES} bytes and "
                f"{len(special)} special tokens need {BYTES + len(special)}"
            )
        corpus = DATASETS.build(corpus) if isinstance(corpus, dict) else corpus
        if not hasattr(corpus, "texts"):
            raise ValueError(f"text_tokenizer.corpus must be a dataset with texts(), not {type(corpus).__name__}")
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=special,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        bpe.train_from_iterator(corpus.texts(template), trainer)
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, bpe.token_to_id(bos))]
        )
        hf = PreTrainedTokenizerFast(
            tokenizer_object=bpe,
            bos_token=bos,
            eos_token=eos,
            pad_token=pad,
            extra_special_tokens=list(special_tokens),
            name_or_path="ByteLevelBPE",
            clean_up_tokenization_spaces=False,
        )
        super().__init__(hf)
