"""An exported Hugging Face folder answers through lmms-eval's own ``llava_hf`` as the model answers here."""

import pytest

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed (pip install -e '.[eval]')")
pytest.importorskip("decord", reason="lmms-eval's llava_hf imports decord, which is not installed")

from test_export import CASES, tiny

from asvr.benchmarks.lmms_eval import Asvr
from asvr.interchange.export import export_llava


@pytest.fixture(scope="module")
def own_task(tasks, tmp_path_factory):
    """The task in words with a stop that no answer has (without one lmms-eval puts an empty line): llava_hf does not
    cut answers there."""
    folder = tmp_path_factory.mktemp("own")
    text = (
        (tasks / "asvr_words.yaml")
        .read_text()
        .replace("max_new_tokens: 6, until: ['\\n']", "max_new_tokens: 12, until: [NEVER]")
    )
    (folder / "asvr_words.yaml").write_text(text)
    (folder / "utils.py").write_bytes((tasks / "utils.py").read_bytes())
    return folder


def answers(model, folder, name: str = "asvr_words") -> list[str]:
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    samples = simple_evaluate(model=model, tasks=[name], task_manager=manager)["samples"][name]
    return [sample["filtered_resps"][0] for sample in sorted(samples, key=lambda sample: sample["doc_id"])]


def llava_hf(folder):
    from lmms_eval.models.simple.llava_hf import LlavaHf

    # Without device_map it names "", which transformers 5 refuses.
    return LlavaHf(pretrained=str(folder), device="cpu", device_map="cpu", dtype="float32")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_llava_hf_gives_the_same_answers(case, own_task, tmp_path):
    source = tiny(*case)
    theirs = llava_hf(export_llava(source, tmp_path / "out"))
    expected = answers(Asvr(pretrained=source, batch_size=3), own_task)
    found = [text.strip() for text in answers(theirs, own_task)]
    assert found == expected and all(expected)


def test_llava_hf_still_cannot_score_choices(tasks, tmp_path):
    """lmms-eval 0.7.3 has the processor read ``<image>`` without the image, which transformers 5 refuses."""
    source = tiny(*CASES[0])
    with pytest.raises(ValueError, match="image.* tokens in the text but no images"):
        answers(llava_hf(export_llava(source, tmp_path / "out")), tasks, "asvr_choice")
    assert len(answers(Asvr(pretrained=source, batch_size=3), tasks, "asvr_choice")) == 8
