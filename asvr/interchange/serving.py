"""Greedy answers of an exported folder from the engines that serve it: transformers, vLLM and SGLang.

Each engine is a function ``(folder, questions, settings) -> answers``. It loads the folder as the engine does. vLLM and
SGLang are optional. They are imported only when they are used.

Legend: ``T`` new tokens of an answer, ``V`` vocabulary.
"""

import base64
import importlib.metadata
import importlib.util
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaNextForConditionalGeneration

from asvr.recipe.build import build_device

ARCHITECTURES = {kind.__name__: kind for kind in (LlavaForConditionalGeneration, LlavaNextForConditionalGeneration)}


@dataclass(frozen=True)
class Question:
    """A question with images. text: without image marks; the images come before it."""

    text: str
    images: list[Image.Image] = field(default_factory=list)

    def as_chat(self) -> list[dict]:
        """The question in the form of transformers' chat templates."""
        return [
            dict(role="user", content=[*[dict(type="image")] * len(self.images), dict(type="text", text=self.text)])
        ]

    def as_openai(self) -> list[dict]:
        """The question in the form of the servers' chat interface: images are data URLs (PNG)."""
        images = [dict(type="image_url", image_url=dict(url=_data_url(image))) for image in self.images]
        return [dict(role="user", content=[*images, dict(type="text", text=self.text)])]


@dataclass(frozen=True)
class Answer:
    """The answer of an engine.

    ids: the new token ids, with the end token if there is one. logprobs: the log probability of each. prompt: the token
    ids of the prompt, with one id for each visual token; None if the engine does not report them. logprobs_TV: the log
    probabilities of all tokens; None if the engine reports only those of the written tokens.
    """

    ids: list[int]
    logprobs: list[float]
    text: str
    prompt: list[int] | None = None
    logprobs_TV: Tensor | None = None


@dataclass(frozen=True)
class Settings:
    """Settings of the engines.

    max_new_tokens: for an answer. dtype: the dtype of computation. max_length: the number of tokens of a prompt with
    its answer, for which vLLM and SGLang keep memory; None: the number of positions of the model.
    """

    max_new_tokens: int = 32
    dtype: str = "float32"
    max_length: int | None = None


@dataclass(frozen=True)
class Engine:
    """An engine. package: the package whose version is reported. ask: see the module's docstring."""

    package: str
    ask: Callable[[Path, list[Question], Settings], list[Answer]]

    @property
    def version(self) -> str | None:
        """The version of the package, None if it is not installed."""
        if importlib.util.find_spec(self.package) is None:
            return None
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:  # a build from a clone may have another name
            return getattr(importlib.import_module(self.package), "__version__", "unknown")


def check_folder(folder: Path) -> dict:
    """The config of an exported folder. Raises ``ValueError`` if the folder is no export."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if not ARCHITECTURES.keys() & set(config.get("architectures") or ()):
        raise ValueError(
            f"{folder}: not an exported folder: its config.json must name {' or '.join(ARCHITECTURES)}; "
            "`asvr convert export MODEL FOLDER` writes one"
        )
    return config


def ask_transformers(folder: Path, questions: list[Question], settings: Settings) -> list[Answer]:
    """Ask transformers, one prompt at a time, with the PIL image processor."""
    kind = ARCHITECTURES[check_folder(folder)["architectures"][0]]
    processor = AutoProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    model = kind.from_pretrained(folder, dtype=getattr(torch, settings.dtype), local_files_only=True)
    model.eval().to(build_device("auto"))
    answers = []
    for question in questions:
        inputs = processor(text=_prompt(processor, question), images=question.images or None, return_tensors="pt")
        inputs = inputs.to(model.device, dtype=model.dtype)
        out = model.generate(
            **inputs, max_new_tokens=settings.max_new_tokens, return_dict_in_generate=True, output_logits=True
        )
        prompt = inputs["input_ids"][0].tolist()
        answers.append(as_answer(out.sequences[0, len(prompt) :], out.logits, processor.tokenizer.decode, prompt))
    return answers


def as_answer(ids_T: Tensor, logits: tuple[Tensor, ...], decode: Callable, prompt: list[int]) -> Answer:
    """The result of transformers' ``generate`` for one prompt as an `Answer`. logits: (1, V) of each new token."""
    logprobs_TV = torch.cat(logits).float().log_softmax(-1).cpu()
    ids_T = ids_T.cpu()
    chosen_T = logprobs_TV.gather(1, ids_T[:, None])[:, 0]
    text = decode(ids_T, skip_special_tokens=True).strip()
    return Answer(ids_T.tolist(), chosen_T.tolist(), text, prompt=prompt, logprobs_TV=logprobs_TV)


def ask_vllm(folder: Path, questions: list[Question], settings: Settings) -> list[Answer]:
    """Ask vLLM through its chat interface, with the chat template of the folder."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(folder),
        dtype=settings.dtype,
        max_model_len=settings.max_length,
        limit_mm_per_prompt=dict(image=max(1, *(len(question.images) for question in questions))),
        enforce_eager=True,  # for a few short answers, capturing graphs would take longer
    )
    sampling = SamplingParams(temperature=0.0, max_tokens=settings.max_new_tokens, logprobs=1)
    answers = []
    for question in questions:
        out = llm.chat(question.as_openai(), sampling, use_tqdm=False)[0]
        first = out.outputs[0]
        ids = list(first.token_ids)
        logprobs = [own[token].logprob for token, own in zip(ids, first.logprobs, strict=True)]
        answers.append(Answer(ids, logprobs, first.text.strip(), prompt=list(out.prompt_token_ids)))
    return answers


def ask_sglang(folder: Path, questions: list[Question], settings: Settings) -> list[Answer]:
    """Ask SGLang with prompts that the chat template of the folder wrote."""
    import sglang

    processor = AutoProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    engine = sglang.Engine(
        model_path=str(folder),
        dtype=settings.dtype,
        context_length=settings.max_length,
        disable_cuda_graph=True,
    )
    sampling = dict(temperature=0.0, max_new_tokens=settings.max_new_tokens)
    try:
        answers = []
        for question in questions:
            images = [_data_url(image) for image in question.images]
            out = engine.generate(
                prompt=_prompt(processor, question),
                sampling_params=sampling,
                image_data=images or None,
                return_logprob=True,
            )
            pairs = [(token, logprob) for logprob, token, *_ in out["meta_info"]["output_token_logprobs"]]
            ids, logprobs = [token for token, _ in pairs], [logprob for _, logprob in pairs]
            answers.append(Answer(ids, logprobs, out["text"].strip()))
        return answers
    finally:
        engine.shutdown()


ENGINES = {
    "transformers": Engine("transformers", ask_transformers),
    "vllm": Engine("vllm", ask_vllm),
    "sglang": Engine("sglang", ask_sglang),
}


def _prompt(processor, question: Question) -> str:
    return processor.apply_chat_template(question.as_chat(), add_generation_prompt=True)


def _data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
