"""asvr check-export: engines that serve a folder give the answers of the model that was exported."""

import math
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from PIL import Image
from test_export import CASES, tiny

from asvr.commands import check_export as command
from asvr.interchange import serving
from asvr.interchange.check_export import Difference, check_export, compare, made_questions
from asvr.interchange.export import export_llava
from asvr.interchange.serving import Answer, Question, Settings, ask_transformers, check_folder

SETTINGS = Settings(max_new_tokens=4)


@pytest.fixture(scope="module", params=["llava", "next"])
def exported(request, tmp_path_factory):
    """A saved model and its export."""
    root = tmp_path_factory.mktemp(request.param)
    source = tiny(*CASES[2], dict(layout=dict(type="AnyRes")) if request.param == "next" else None)
    return source.save_pretrained(root / "source"), export_llava(source, root / "folder")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("folder")
    return export_llava(tiny(*CASES[2]), root / "folder")


def run(monkeypatch, capsys, *arguments) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["check-export", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        command.main()
    return end.value.code, capsys.readouterr().out


def without_engines(monkeypatch) -> None:
    """None besides transformers is installed, wherever the tests run."""
    found = serving.importlib.util.find_spec
    kept = lambda name, *rest: None if name in ("vllm", "sglang") else found(name, *rest)  # noqa: E731
    monkeypatch.setattr(serving.importlib.util, "find_spec", kept)


def test_transformers_answers_as_this_library(exported, monkeypatch, capsys):
    source, folder = exported
    without_engines(monkeypatch)
    code, text = run(monkeypatch, capsys, folder, "--against", source, "--max-new-tokens", 4)
    assert code == 0, text
    assert f"{folder}, float32, reference: asvr" in text
    assert "| 4 of 4 | 0.0000 | same |" in text
    assert "| vllm | - | - | - | not installed (pip install vllm) |" in text
    assert "| sglang | - | - | - | not installed (pip install sglang) |" in text


def test_another_model_differs(folder, tmp_path, monkeypatch, capsys):
    source = tiny(*CASES[2])
    with torch.no_grad():
        source.model.projector.mlp[0].weight.mul_(-1)
    other = source.save_pretrained(tmp_path / "other")
    arguments = (folder, "--against", other, "--engine", "transformers", "--max-new-tokens", 4)
    code, text = run(monkeypatch, capsys, *arguments)
    assert code == 1
    assert "| differs |" in text and "transformers, 'What is in this image?': token 0 " in text
    assert "'What can you do?'" not in text, "a text alone does not pass the projector"


def test_the_command_knows_the_engines():
    assert command.ENGINES == ("all", *serving.ENGINES)


def test_own_images_and_questions_are_asked(folder, tmp_path, monkeypatch, capsys):
    Image.new("RGB", (50, 40), "teal").save(tmp_path / "a.png")
    arguments = (folder, "--engine", "transformers", "--image", tmp_path / "a.png", "--question", "a house?", "why?")
    code, text = run(monkeypatch, capsys, *arguments, "--max-new-tokens", 2)
    assert code == 0 and "| 2 of 2 |" in text and "reference |" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--engine", "vllm"), r"--engine vllm: vllm is not installed \(pip install vllm\)"),
        (("--image", "no.png"), "--image: there is no file no.png"),
        (("--max-new-tokens", "0"), "--max-new-tokens 0: expected at least 1"),
        (("--tolerance", "-1"), "--tolerance -1.0: expected a number of nats"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, message, folder, monkeypatch):
    without_engines(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["check-export", str(folder), *arguments])
    with pytest.raises(ValueError, match=message) as error:
        command.main()
    assert "\n" not in str(error.value)


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not an exported folder: its config.json must name LlavaForCond"):
        check_folder(tmp_path)


# Engines that are not installed here: what they are asked, and what is made of their answers.


def stand_in(answers: list[Answer], change) -> tuple[ModuleType, list]:
    """vLLM's interface over known answers. change: of the token ids and log probabilities that it gives."""
    calls: list = []
    module = ModuleType("vllm")
    module.SamplingParams = lambda **kwargs: SimpleNamespace(**kwargs)

    class LLM:
        def __init__(self, **kwargs):
            calls.append(kwargs)
            self.answers = iter(answers)

        def chat(self, messages, sampling, use_tqdm):
            calls.append((messages, sampling))
            answer = next(self.answers)
            ids, logprobs = change(answer.ids, answer.logprobs)
            told = [{token: SimpleNamespace(logprob=one)} for token, one in zip(ids, logprobs, strict=True)]
            output = SimpleNamespace(token_ids=tuple(ids), logprobs=told, text=answer.text)
            return [SimpleNamespace(outputs=[output], prompt_token_ids=answer.prompt)]

    module.LLM = LLM
    return module, calls


def install(monkeypatch, name: str, module: ModuleType) -> None:
    module.__version__ = "1.2"
    module.__spec__ = SimpleNamespace(name=name)  # what find_spec gives of a module that is imported
    monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda ids, logprobs: (ids, [one + 0.01 for one in logprobs]), True),
        (lambda ids, logprobs: (ids, [one + 0.2 for one in logprobs]), False),
        (lambda ids, logprobs: ([*ids[:-1], ids[-1] + 1], logprobs), False),
        (lambda ids, logprobs: (ids[:-1], logprobs[:-1]), False),
    ],
)
def test_vllm_is_asked_by_its_chat_interface(change, same, folder, monkeypatch):
    questions = made_questions(check_folder(folder))
    answers = ask_transformers(folder, questions, SETTINGS)
    without_engines(monkeypatch)
    module, calls = stand_in(answers, change)
    monkeypatch.setattr(serving.importlib.util, "find_spec", lambda name: name != "sglang" or None)
    install(monkeypatch, "vllm", module)
    report = check_export(folder, engine="vllm", settings=SETTINGS)
    assert report.same == same and ("| vllm | 1.2 |" in report.text)
    assert calls[0]["model"] == str(folder) and calls[0]["limit_mm_per_prompt"] == dict(image=2)
    (message,), sampling = calls[3]
    kinds = [part["type"] for part in message["content"]]
    assert kinds == ["image_url", "image_url", "text"] and message["role"] == "user"
    assert message["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert (sampling.temperature, sampling.max_tokens) == (0.0, 4)


def test_an_engine_that_ends_with_an_error_is_told(folder, monkeypatch):
    module = ModuleType("vllm")
    module.SamplingParams = module.LLM = lambda **kwargs: 1 / 0
    monkeypatch.setattr(serving.importlib.util, "find_spec", lambda name: name != "sglang" or None)
    install(monkeypatch, "vllm", module)
    report = check_export(folder, settings=SETTINGS)
    assert not report.same and "| vllm | 1.2 | 0 of 4 | - | error |" in report.text
    assert (
        "vllm: ZeroDivisionError: division by zero" in report.text and "| 4 of 4 | 0.0000 | reference |" in report.text
    )


def test_sglang_is_given_the_prompt_of_the_chat_template(folder, monkeypatch):
    questions = made_questions(check_folder(folder))
    answers, calls = iter(ask_transformers(folder, questions, SETTINGS)), []
    module = ModuleType("sglang")

    class Engine:
        def __init__(self, **kwargs):
            calls.append(kwargs)

        def generate(self, **kwargs):
            calls.append(kwargs)
            answer = next(answers)
            told = [(logprob, token, None) for token, logprob in zip(answer.ids, answer.logprobs, strict=True)]
            return dict(text=answer.text, meta_info=dict(output_token_logprobs=told))

        def shutdown(self):
            calls.append("shutdown")

    module.Engine = Engine
    monkeypatch.setattr(serving.importlib.util, "find_spec", lambda name: name != "vllm" or None)
    install(monkeypatch, "sglang", module)
    report = check_export(folder, engine="sglang", settings=SETTINGS)
    assert report.same and "| sglang | 1.2 | 4 of 4 |" in report.text
    assert calls[0]["model_path"] == str(folder) and calls[-1] == "shutdown"
    assert calls[3]["prompt"].count("<image>") == 2 and len(calls[3]["image_data"]) == 2
    assert calls[4]["image_data"] is None


def answer(*probabilities: list[float]) -> Answer:
    """The most probable token at each place."""
    logprobs = torch.tensor(probabilities).log()
    chosen = logprobs.max(-1)
    return Answer(chosen.indices.tolist(), chosen.values.tolist(), "", prompt=[1], logprobs_TV=logprobs)


def test_answers_may_part_where_two_tokens_are_nearly_as_probable():
    ours = answer([0.1, 0.9], [0.51, 0.49], [0.2, 0.8])
    other = Answer([1, 1, 0], [math.log(0.9), math.log(0.49), 0.0], "", prompt=[1])
    assert compare(ours, other, tolerance=0.05) == Difference(pytest.approx(0.0, abs=1e-6))
    assert "token 1 is 1, expected 0" in compare(ours, other, tolerance=0.01).problem
    assert "prompt has the token ids" in compare(ours, Answer(ours.ids, ours.logprobs, "", prompt=[2]), 0.05).problem


def test_a_question_stands_behind_its_images():
    content = Question("what?", [Image.new("RGB", (2, 2))]).as_chat()[0]["content"]
    assert content == [dict(type="image"), dict(type="text", text="what?")]
