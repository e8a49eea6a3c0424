"""Tokenizer folders as they are published: tiny, but with the files and the settings of each family."""

import io
import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import sentencepiece
from data_helpers import TEXTS
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaTokenizer

LETTERS = "the quick brown fox jumps over the lazy dog; THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG 0123456789 .,:'<>/"
SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
ABSENT = object()


@cache
def _sentencepiece(dummy_prefix: bool = True) -> bytes:
    """The ``tokenizer.model`` of Llama-2 and Vicuna (Gemma's without the dummy prefix), with 400 pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*TEXTS, LETTERS]),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=True,
        add_dummy_prefix=dummy_prefix,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        allow_whitespace_only_pieces=True,
        split_digits=True,
        minloglevel=2,
    )
    return model.getvalue()


def _llama_json(prefix: str) -> str:
    """The ``tokenizer.json`` of Llama-2's family. prefix: ``prepend`` as published in 2023, or Metaspace's scheme."""
    with tempfile.TemporaryDirectory() as folder:
        _llama_model(Path(folder), legacy=False)
        bpe = LlamaTokenizer.from_pretrained(folder).backend_tokenizer
    if prefix == "prepend":
        bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        bpe.pre_tokenizer = None
    else:
        bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return bpe.to_str()


def _write(folder: Path, config: dict, **files: str | bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in config.items() if value is not ABSENT}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name, content in files.items():
        file = folder / name.replace("__", ".")
        file.write_bytes(content.encode() if isinstance(content, str) else content)


def _llama_config(**changes) -> dict:
    named = {
        key: dict(__type="AddedToken", content=text, lstrip=False, normalized=True, rstrip=False, single_word=False)
        for key, text in SPECIAL.items()
    }
    return (
        dict(
            named,
            add_bos_token=True,
            add_eos_token=False,
            clean_up_tokenization_spaces=False,
            model_max_length=4096,
            pad_token=None,
            padding_side="right",
            sp_model_kwargs={},
            tokenizer_class="LlamaTokenizer",
        )
        | changes
    )


SPECIAL_MAP = json.dumps({key: dict(content=text, lstrip=False, normalized=True) for key, text in SPECIAL.items()})


def _llama_model(folder: Path, **changes) -> None:
    _write(folder, _llama_config(**changes), tokenizer__model=_sentencepiece(), special_tokens_map__json=SPECIAL_MAP)


def _llama_both(folder: Path, prefix: str, **changes) -> None:
    _llama_model(folder, **changes)
    (folder / "tokenizer.json").write_text(_llama_json(prefix))


def _llama_fast(folder: Path, prefix: str, **changes) -> None:
    _write(folder, _llama_config(**changes), tokenizer__json=_llama_json(prefix), special_tokens_map__json=SPECIAL_MAP)


def _gemma(folder: Path) -> None:
    config = dict(_llama_config(tokenizer_class="GemmaTokenizer"), pad_token="<unk>")
    _write(folder, config, tokenizer__model=_sentencepiece(dummy_prefix=False))


QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@cache
def _byte_level(*, special: tuple[str, ...], split: str | None = None) -> str:
    """A byte-level BPE. split: the expression that cuts words, where it is not GPT-2's."""
    bpe = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    words = [pre_tokenizers.Split(Regex(split), "isolated")] if split else []
    bpe.pre_tokenizer = pre_tokenizers.Sequence([*words, level]) if words else level
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(TEXTS, trainer)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return bpe.to_str()


def _vocab_and_merges(text: str) -> dict[str, str]:
    model = json.loads(text)["model"]
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in model["merges"])])
    return dict(vocab__json=json.dumps(model["vocab"]), merges__txt=merges)


def _qwen(folder: Path, *, files: bool, fast: bool) -> None:
    text = _byte_level(special=tuple(QWEN), split=SPLIT)
    added = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        for token in json.loads(text)["added_tokens"]
    }
    config = dict(
        add_prefix_space=False,
        added_tokens_decoder=added,
        additional_special_tokens=QWEN[1:],
        bos_token=None,
        clean_up_tokenization_spaces=False,
        eos_token="<|im_end|>",
        errors="replace",
        model_max_length=32768,
        pad_token="<|endoftext|>",
        split_special_tokens=False,
        tokenizer_class="Qwen2Tokenizer",
        unk_token=None,
    )
    _write(folder, config, **(_vocab_and_merges(text) if files else {}), **(dict(tokenizer__json=text) if fast else {}))


def _gpt2(folder: Path, *, files: bool, fast: bool, **changes) -> None:
    end = "<|endoftext|>"
    text = _byte_level(special=(end,))
    config = dict(add_prefix_space=False, tokenizer_class="GPT2Tokenizer", bos_token=end, eos_token=end, unk_token=end)
    given = (_vocab_and_merges(text) if files else {}) | (dict(tokenizer__json=text) if fast else {})
    _write(folder, config | changes, **given)
    if files and not fast:
        model = json.loads(text)["model"]["vocab"]
        (folder / "vocab.json").write_text(json.dumps(model | {end: len(model)}))


def _llama3(folder: Path, **changes) -> None:
    special = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")
    bpe = Tokenizer.from_str(_byte_level(special=special, split=SPLIT))
    bos = special[0]
    level = processors.ByteLevel(trim_offsets=False)
    template = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, bpe.token_to_id(bos))])
    bpe.post_processor = processors.Sequence([level, template])
    config = dict(
        bos_token=bos,
        eos_token="<|eot_id|>",
        clean_up_tokenization_spaces=True,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=131072,
        tokenizer_class="PreTrainedTokenizerFast",
    )
    _write(folder, config | changes, tokenizer__json=bpe.to_str())


LEGACY = {"true": True, "false": False, "absent": ABSENT}
LAYOUTS: dict[str, Callable[[Path], None]] = {}
for _name, _legacy in LEGACY.items():
    LAYOUTS |= {
        f"vicuna, model, legacy {_name}": lambda folder, v=_legacy: _llama_model(folder, legacy=v),
        f"vicuna, model and json, legacy {_name}": lambda folder, v=_legacy: _llama_both(folder, "prepend", legacy=v),
        f"vicuna, json, legacy {_name}": lambda folder, v=_legacy: _llama_fast(folder, "prepend", legacy=v),
        f"llama, new json, legacy {_name}": lambda folder, v=_legacy: _llama_fast(folder, "first", legacy=v),
    }
LAYOUTS |= {
    "llama, json, LlamaTokenizerFast": lambda f: _llama_fast(f, "prepend", tokenizer_class="LlamaTokenizerFast"),
    "llama, json, no class": lambda f: _llama_fast(f, "prepend", tokenizer_class=ABSENT),
    "llama, new json, no class": lambda f: _llama_fast(f, "first", tokenizer_class=ABSENT),
    "llama, json, generic class": lambda f: _llama_fast(f, "prepend", tokenizer_class="PreTrainedTokenizerFast"),
    "llama, json always, generic class": lambda f: _llama_fast(f, "always", tokenizer_class="PreTrainedTokenizerFast"),
    "llama, json, own pad": lambda f: _llama_both(f, "prepend", legacy=False, pad_token="<unk>"),
    "gemma, model": _gemma,
    "qwen, files": lambda f: _qwen(f, files=True, fast=False),
    "qwen, json": lambda f: _qwen(f, files=False, fast=True),
    "qwen, both": lambda f: _qwen(f, files=True, fast=True),
    "gpt2, files": lambda f: _gpt2(f, files=True, fast=False),
    "gpt2, json": lambda f: _gpt2(f, files=False, fast=True),
    "gpt2, prefix space": lambda f: _gpt2(f, files=True, fast=False, add_prefix_space=True),
    "llama3": _llama3,
    "llama3, TokenizersBackend": lambda f: _llama3(f, tokenizer_class="TokenizersBackend"),
}
