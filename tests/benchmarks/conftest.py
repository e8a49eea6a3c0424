"""Tasks of lmms-eval that need nothing but files: easy-vqa's questions, answered in words and by choice."""

import json

import pytest

from asvr.data.easy_vqa import EasyVQA

TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: {output}
doc_to_visual: !function utils.pictures
doc_to_text: question
doc_to_target: {target}
{more}
metric_list:
  - metric: {metric}
    aggregation: mean
    higher_is_better: true
"""
UTILS = """
from PIL import Image

def pictures(doc):
    return [Image.open(doc["picture"])]
"""


@pytest.fixture(scope="session")
def questions() -> list[dict]:
    dataset = EasyVQA(split="test", max_images=4, seed=None)
    records = [dataset.record(i) for i in range(8)]
    return [
        dict(
            picture=str(dataset.image(record["image"])[1]),
            question=record["conversations"][0]["value"].replace("<image>\n", ""),
            answer=record["conversations"][1]["value"],
            choices=["yes", "no", "circle"],
            gold=0,
        )
        for record in records
    ]


@pytest.fixture(scope="session")
def tasks(questions, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    (folder / "utils.py").write_text(UTILS)
    kinds = dict(
        asvr_words=dict(output="generate_until", target="answer", metric="exact_match"),
        asvr_choice=dict(output="multiple_choice", target="gold", metric="acc"),
    )
    more = dict(
        asvr_words="generation_kwargs: {max_new_tokens: 6, until: ['\\n']}", asvr_choice="doc_to_choice: choices"
    )
    for name, kind in kinds.items():
        text = TASK.format(name=name, data=folder / "test.jsonl", more=more[name], **kind)
        (folder / f"{name}.yaml").write_text(text)
    return folder
