"""The model ``asvr`` of lmms-eval. With it lmms-eval's tasks run on a saved model, a run, or a model in memory.

    python -m lmms_eval --model asvr --model_args pretrained=models/mine --tasks mme --batch_size 16

lmms-eval (0.7) finds it by the entry point ``lmms_eval.models`` of this package.
"""

import math
from collections.abc import Callable

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms

from asvr.base.compat import lmms_eval_result
from asvr.base.log import logger, progress_bar
from asvr.base.shares import shared_out
from asvr.loading import load
from asvr.pretrained import Pretrained, PromptTooLong
from asvr.recipe.build import build_device

MAX_NEW_TOKENS = 1024  # if a task does not set it, as in lmms-eval's own models


def manifest():
    from lmms_eval.models.registry_v2 import ModelManifest  # here: importing lmms_eval.models asks for this manifest

    return ModelManifest("asvr", simple_class_path=f"{__name__}.Asvr")


class Asvr(lmms):
    """A model of this library in the form that lmms-eval asks.

    pretrained: a folder or name for ``asvr.load``, its result, or a model in training in the same form. batch_size:
    questions at once. device: see `build_device`. shared: several processes get the same questions from lmms-eval; each
    answers its share of the batches, and all get all answers.

    Images come before the question unless it has ``<image>``. A question that is too long for the LLM gets an empty
    answer and a warning. A choice that is too long gets an infinite loss, so any other choice wins. If all choices are
    too long, lmms-eval takes the first. Raises ``ValueError`` for videos and sounds.
    """

    def __init__(
        self,
        *,
        pretrained: str | Pretrained,
        batch_size: int | str = 1,
        device: str | None = None,
        shared: bool = False,
    ):
        super().__init__()
        own = pretrained if isinstance(pretrained, Pretrained) else load(pretrained)
        self.pretrained = own.to(build_device(device)) if device is not None else own
        self.batch_size, self.shared = int(batch_size), shared

    def generate_until(self, requests: list[Instance]) -> list[str]:
        parts = [(settings, chunk) for settings, own in self._alike(requests) for chunk in self._chunks(own)]

        def answer(part: tuple[dict, list[int]]) -> list[str]:
            settings, chunk = part
            found = self._answers([self._prompt(requests[i].args) for i in chunk], _generation(settings))
            return [_until(text, settings.get("until")) for text in found]

        found = self._work_on(parts, answer, [len(chunk) for _, chunk in parts], "answers", "question")
        order = [i for _, chunk in parts for i in chunk]
        answers = dict(zip(order, [text for texts in found for text in texts], strict=True))
        return [answers[i] for i in range(len(requests))]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """The loss of each continuation in nats per token, and whether it is the greedy answer. lmms-eval takes the
        smallest loss."""
        parts = self._chunks(list(range(len(requests))))

        def score(chunk: list[int]) -> list[tuple[float, bool]]:
            return self._scores([self._scored(requests[i].args) for i in chunk])

        found = self._work_on(parts, score, [len(chunk) for chunk in parts], "continuations", "continuation")
        return [lmms_eval_result(result) for results in found for result in results]

    def _chunks(self, indices: list[int]) -> list[list[int]]:
        return [indices[begin : begin + self.batch_size] for begin in range(0, len(indices), self.batch_size)]

    def _work_on(self, parts: list, work: Callable, sizes: list[int], desc: str, unit: str) -> list:
        """The results of ``work(part)`` for all batches, in order."""
        with progress_bar(total=sum(sizes), desc=desc, unit=unit) as bar:
            if self.shared:
                numbered = list(enumerate(parts))
                return shared_out(
                    numbered,
                    lambda part: work(part[1]),
                    done=lambda together: bar.update(sum(sizes[number] for number, _ in together)),
                )
            found = []
            for part, size in zip(parts, sizes, strict=True):
                found.append(work(part))
                bar.update(size)
            return found

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise ValueError("asvr: tasks of several rounds are not supported: choose others, or use lmms-eval's llava_hf")

    def _answers(self, prompts: list[dict], kwargs: dict) -> list[str]:
        """The answers. A question that is too long for the LLM gets an empty one, and the others are still answered."""
        try:
            return self.pretrained.generate(prompts, **kwargs)
        except PromptTooLong as error:
            if len(prompts) > 1:
                return [answer for prompt in prompts for answer in self._answers([prompt], kwargs)]
            logger.warning("no answer: %s", error)
            return [""]

    def _scores(self, conversations: list[dict]) -> list[tuple[float, bool]]:
        """The scores. A conversation that is too long for the LLM gets the worst one."""
        try:
            return self.pretrained.score(conversations)
        except PromptTooLong as error:
            if len(conversations) > 1:
                return [score for conversation in conversations for score in self._scores([conversation])]
            logger.warning("a choice counts as the worst: %s", error)
            return [(math.inf, False)]

    def _alike(self, requests: list[Instance]) -> list[tuple[dict, list[int]]]:
        """Groups of requests with the same settings of generation. In each group the longest comes first."""
        groups: dict[str, tuple[dict, list[int]]] = {}
        for i, request in enumerate(requests):
            settings = request.args[1]
            groups.setdefault(repr(sorted(settings.items(), key=str)), (settings, []))[1].append(i)
        return [
            (settings, sorted(found, key=lambda i: -len(requests[i].args[0]))) for settings, found in groups.values()
        ]

    def _prompt(self, args: tuple) -> dict:
        context, _, doc_to_visual, doc_id, task, split = args
        images = list(doc_to_visual(self.task_dict[task][split][doc_id]) or [])
        return dict(images=images, messages=[{"from": "human", "value": context}])

    def _scored(self, args: tuple) -> dict:
        _, target, _, doc_id, task, split = args
        answer = target if isinstance(target, str) else target(self.task_dict[task][split][doc_id])
        prompt = self._prompt(args)
        return dict(prompt, messages=[*prompt["messages"], {"from": "gpt", "value": answer}])


def _generation(settings: dict) -> dict:
    """Keyword arguments for transformers' ``generate``, from the settings of a task."""
    found = dict(max_new_tokens=settings.get("max_new_tokens", MAX_NEW_TOKENS))
    if settings.get("num_beams") not in (None, 1):
        found["num_beams"] = settings["num_beams"]
    if settings.get("temperature") or settings.get("do_sample"):
        found |= {key: settings[key] for key in ("temperature", "top_p", "top_k") if settings.get(key) is not None}
        found["do_sample"] = True
    return found


def _until(text: str, stops: str | list[str] | None) -> str:
    for stop in [stops] if isinstance(stops, str) else stops or []:
        text = text.split(stop)[0] if stop else text
    return text
