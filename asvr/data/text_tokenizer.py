"""Text tokenizers: a narrow class around a Hugging Face fast tokenizer."""

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from asvr.base import hub
from asvr.base.gguf import gguf_tokenizer, is_gguf
from asvr.base.quiet import without_warnings
from asvr.data.refusals import Refused
from asvr.registry import DATASETS, TEXT_TOKENIZERS

logger = logging.getLogger("asvr")

BYTES = 256


class TextTokenizer:
    """A text tokenizer that encodes text in pieces, and in which no text can write a control token.

    hf: the Hugging Face fast tokenizer itself. bos_id: the token that the tokenizer puts before a text; None if it
    puts none (Qwen). pad_id: fills rows; it is never learned. prefix_after_control: whether a text directly after a
    special token gets a prefix space.
    """

    def __init__(self, hf: PreTrainedTokenizerFast):
        self.hf = hf
        self.bos_id = hf.bos_token_id if hf("")["input_ids"][:1] == [hf.bos_token_id] else None
        self.eos_id = hf.eos_token_id
        if self.eos_id is None:
            raise ValueError(f"the tokenizer {hf.name_or_path!r} has no EOS token, which ends an answer: use another")
        fallbacks = (hf.pad_token_id, hf.unk_token_id, hf.eos_token_id)
        self.pad_id = next(token for token in fallbacks if token is not None)
        # Tokens that no text may write, except the unknown token: the vocabulary lacks some characters.
        self._control = frozenset(hf.all_special_ids) - {hf.unk_token_id}
        spec = json.loads(hf.backend_tokenizer.to_str())
        self.prefix_after_control = _prefixes_every_piece(spec)
        self._alone = _text_only(spec)
        without_prefix = _without_prefix(spec)
        self._continuing = self._alone if without_prefix == spec else _text_only(without_prefix)

    def encode(self, text: str, *, control: bool = False, continues: bool = False) -> list[int]:
        """Token ids of a text, without BOS and EOS.

        control: the text is the name of one special token, and its id is returned. Otherwise the letters of a special
        token are ordinary letters. continues: the text continues another text, so a tokenizer that puts a space before
        a text (sentencepiece) does not do so.

        Raises: ValueError if the tokenizer does not have the control token; `Refused` if a text still gives a control
        token, which happens if the normal vocabulary contains one.
        """
        if not control:
            ids = (self._continuing if continues else self._alone).encode(text, add_special_tokens=False).ids
            if not self._control.isdisjoint(ids):
                found = self.hf.convert_ids_to_tokens(next(token for token in ids if token in self._control))
                raise Refused(f"with this tokenizer the text gives the control token {found!r}", "control token")
            return ids
        if text not in self.hf.all_special_tokens and not self._is_special(text):
            raise ValueError(
                f"the tokenizer {self.hf.name_or_path!r} has no special token {text!r}, which the template writes: "
                f"choose another template, or a tokenizer that has it (ByteLevelBPE takes special_tokens=[{text!r}])"
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
        """The largest id plus one: the rows that embeddings need. It exceeds the length if ids have gaps."""
        return max(self.hf.get_vocab().values()) + 1

    def save_pretrained(self, folder: str | Path) -> None:
        """Write Hugging Face's tokenizer files; ``HFTokenizer(name=folder)`` reads them.

        The files are written so that tokenizer.json alone decides. transformers' classes of model families would build
        the tokenizer from settings, and some of these are not saved (``legacy`` of `LlamaTokenizer`).
        """
        self.hf.save_pretrained(str(folder))
        file = Path(folder) / "tokenizer_config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        kept = {key: value for key, value in config.items() if key not in _OF_A_CLASS}
        if "extra_special_tokens" in kept:  # the name that transformers 4 knows too
            kept["additional_special_tokens"] = kept.pop("extra_special_tokens")
        kept |= dict(
            tokenizer_class="PreTrainedTokenizerFast",
            clean_up_tokenization_spaces=bool(self.hf.clean_up_tokenization_spaces),
        )
        file.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")

    def fingerprint(self) -> str:
        """SHA-256 (16 hex digits) of everything that decides the ids of a text."""
        parts = [self.hf.backend_tokenizer.to_str(), str((self.bos_id, self.eos_id, self.pad_id))]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


# Fields of tokenizer_config.json that only the class of a model family reads, or that say how the folder was read.
_OF_A_CLASS = ("legacy", "add_prefix_space", "sp_model_kwargs", "backend", "is_local", "local_files_only")


def _text_only(spec: dict) -> Tokenizer:
    """The tokenizer without special tokens, so that no text can give one."""
    added = [token for token in spec["added_tokens"] if not token["special"]]
    plain = spec | dict(added_tokens=added, post_processor=None, truncation=None, padding=None)
    return Tokenizer.from_str(json.dumps(plain))


def _parts(spec) -> Iterable[dict]:
    """A normalizer or pre-tokenizer; for a sequence, its members too."""
    if spec:
        yield spec
        for part in spec.get("normalizers", []) + spec.get("pretokenizers", []):
            yield from _parts(part)


# transformers' form of a sentencepiece rule: a text that begins with a space gets another one.
_LEADING_SPACE = r"\A▁"


def _prefixes_every_piece(spec: dict) -> bool:
    return any(
        part["type"] == "Prepend" or part.get("prepend_scheme") == "always" or part.get("add_prefix_space") is True
        for key in ("normalizer", "pre_tokenizer")
        for part in _parts(spec[key])
    )


def _without_prefix(spec: dict) -> dict:
    """The spec of the same tokenizer without a space before a text."""
    spec = json.loads(json.dumps(spec))
    for key in ("normalizer", "pre_tokenizer"):
        for part in _parts(spec[key]):
            if part["type"] == "Prepend":
                part["prepend"] = ""
            if part["type"] == "Replace" and part["pattern"].get("Regex") == _LEADING_SPACE:
                part["content"] = "▁"
            if "prepend_scheme" in part:
                part["prepend_scheme"] = "never"
            if "add_prefix_space" in part:
                part["add_prefix_space"] = False
    return spec


# A text tokenizer has its vocabulary in one of these files.
VOCABULARIES = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt", "tekken.json", "*.tiktoken")


@TEXT_TOKENIZERS.register_module()
class HFTokenizer(TextTokenizer):
    """The tokenizer of a Hugging Face model, from a local folder or a GGUF file. Code in the folder is never run.

    name: the model, see `asvr.base.hub`.

    Raises: `asvr.base.hub.MissingWeights` if there is no such folder; ValueError if it has no tokenizer that can be
    read without running code from the folder.
    """

    def __init__(self, *, name: str):
        folder = hub.require(name, what="text tokenizer")
        super().__init__(gguf_tokenizer(folder) if is_gguf(folder) else _read(name, folder))


def _read(name: str, folder: Path) -> PreTrainedTokenizerFast:
    try:
        with without_warnings():
            hf = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # for unexpected files, transformers' classes raise errors of any kind
        raise ValueError(_unreadable(name, folder, error)) from error
    if not has_vocabulary(folder):  # from the model's type alone, transformers makes a tokenizer of three tokens
        raise ValueError(_unreadable(name, folder, None))
    if not hf.is_fast:
        raise ValueError(f"the tokenizer of {name!r} ({folder}) has no fast version: expected a tokenizer.json")
    return hf


# Texts to compare two tokenizers: words, spaces, line breaks, rare characters, letters of control tokens.
PROBES = ("A house.", " two  spaces ", "a\nb\n", "\n", "déjà 你好 🙂", "0123 4.5%", "<s> </s> <image> <|im_start|>")


def save_text_tokenizer(tokenizer: TextTokenizer, folder: str | Path) -> None:
    """Write the files of a text tokenizer. Raises ``ValueError`` if they are read back as another tokenizer."""
    tokenizer.save_pretrained(folder)
    _require_same(tokenizer, HFTokenizer(name=str(Path(folder).absolute())))


def check_saving(tokenizer: TextTokenizer) -> None:
    """Check, before a model is trained, that the files of its text tokenizer are read back as the same tokenizer.

    Raises ``ValueError`` if not. If the files of a user's own class are not Hugging Face files, it only warns: the
    config can build the tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        try:
            again = HFTokenizer(name=folder)
        except ValueError:
            if type(tokenizer).__module__ == __name__:
                raise
            logger.warning(
                "text_tokenizer %s: its files are not Hugging Face's: a model trained with it loads from the work dir, "
                "but cannot be saved as a model folder",
                type(tokenizer).__name__,
            )
            return
        _require_same(tokenizer, again)


def _require_same(tokenizer: TextTokenizer, again: TextTokenizer) -> None:
    if _behaviour(again) != _behaviour(tokenizer):
        raise ValueError(
            f"the text tokenizer {_name(tokenizer)!r} cannot be saved: its files are read back as another one, so "
            "no model trained with it could be loaded; use one that its tokenizer.json describes completely "
            "(tokenizer_class PreTrainedTokenizerFast)"
        )


def _name(tokenizer: TextTokenizer) -> str:
    return getattr(getattr(tokenizer, "hf", None), "name_or_path", "") or type(tokenizer).__name__


def _behaviour(tokenizer: TextTokenizer) -> list:
    """Everything that must be equal for a tokenizer and the one that is read back."""
    found = [tokenizer.fingerprint(), len(tokenizer), tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id]
    for text in PROBES:
        for continues in (False, True):
            try:
                ids = tokenizer.encode(text, continues=continues)
            except Refused as error:
                found.append(error.reason)
            else:
                found += [ids, tokenizer.decode(ids)]
    return found


def has_vocabulary(folder: Path) -> bool:
    """Whether a folder has the files of a text tokenizer."""
    return any(file.is_file() for pattern in VOCABULARIES for file in folder.glob(pattern))


def _unreadable(name: str, folder: Path, error: Exception | None) -> str:
    config = folder / "tokenizer_config.json"
    if config.is_file() and "AutoTokenizer" in _auto_map(config):
        return (
            f"the tokenizer of {name!r} ({folder}) needs Python code from the model's folder, which is never run "
            "here (trust_remote_code is off): convert it to a tokenizer.json, or use a model whose tokenizer "
            "transformers knows"
        )
    if not has_vocabulary(folder):
        return f"{folder}: no text tokenizer is in it, expected one of {', '.join(VOCABULARIES)}"
    message = f"the tokenizer of {name!r} ({folder}) cannot be read: {type(error).__name__}: {error}"
    if (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file():
        message += ". The folder has a tokenizer.model only; reading it needs: pip install sentencepiece protobuf"
    return " ".join(message.split())


def _auto_map(config: Path) -> dict:
    try:
        fields = json.loads(config.read_text(encoding="utf-8"))
    except ValueError:  # the error of the first reader says what is wrong
        return {}
    return (fields.get("auto_map") if isinstance(fields, dict) else None) or {}


@TEXT_TOKENIZERS.register_module()
class ByteLevelBPE(TextTokenizer):
    """A byte-level BPE tokenizer trained on the texts of a dataset. The same texts give the same tokenizer.

    vocab_size: the most tokens, bytes and special tokens included. corpus: a dataset with ``texts(template)``, or its
    config. template: train on the rows as this template writes them, so that its own words ("USER:") become tokens
    too. special_tokens: more special tokens, besides BOS, EOS and padding.
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
            raise ValueError(f"text_tokenizer.corpus is {type(corpus).__name__}: expected a dataset with texts()")
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
