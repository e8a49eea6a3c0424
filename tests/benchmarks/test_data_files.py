"""Which data sets are here is told before anything runs, from the Hugging Face cache alone."""

import pytest

from asvr.benchmarks.data_files import DataSet, MissingData, data_set, found_folder, hub_folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.delenv("LMMS_EVAL_DATASETS_CACHE", raising=False)
    return tmp_path


def downloaded(cache, name: str, files=("README.md", "data/test-0.parquet")):
    """As ``hf download`` leaves it."""
    folder = cache / "hub" / f"datasets--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    for file in files:
        path = folder / "snapshots" / "abc" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return folder / "snapshots" / "abc"


def prepared(cache, owner: str, name: str, subset: str, revision: str = "abc"):
    """As the library datasets leaves it."""
    folder = cache / "datasets" / f"{owner}___{name}" / subset / "0.0.0" / revision
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")


def test_a_data_set_that_is_nowhere_comes_with_the_command():
    told = DataSet("mme", "lmms-lab/MME").absent()
    assert told == "- mme: lmms-lab/MME\n    fetch it:  hf download --repo-type dataset lmms-lab/MME"


def test_what_was_downloaded_is_here(cache):
    snapshot = downloaded(cache, "lmms-lab/MME")
    assert DataSet("mme", "lmms-lab/MME").absent() is None
    assert found_folder("lmms-lab/MME", None) == hub_folder("lmms-lab/MME") == snapshot


def test_a_card_without_data_is_not(cache):
    downloaded(cache, "lmms-lab/MME", ["README.md", ".gitattributes"])
    assert DataSet("mme", "lmms-lab/MME").absent()


def test_what_datasets_has_prepared_is_here_by_subset(cache):
    prepared(cache, "lmms-lab", "doc_vqa", "DocVQA")
    assert DataSet("docvqa", "lmms-lab/DocVQA", "DocVQA").absent() is None
    assert DataSet("infovqa", "lmms-lab/DocVQA", "InfographicVQA").absent()
    assert DataSet("any", "lmms-lab/DocVQA").absent() is None
    snapshot = downloaded(cache, "lmms-lab/DocVQA")
    assert found_folder("lmms-lab/DocVQA", "DocVQA") is None  # datasets finds it by itself
    assert found_folder("lmms-lab/DocVQA", "InfographicVQA") == snapshot


def test_half_of_a_data_set_is_none(cache):
    prepared(cache, "lmms-lab", "doc_vqa", "DocVQA", "abc.incomplete")  # a load that was killed
    (cache / "datasets" / "lmms-lab___doc_vqa" / "DocVQA" / "0.0.0" / "abc").mkdir()
    assert not DataSet("docvqa", "lmms-lab/DocVQA", "DocVQA").is_prepared()
    assert not DataSet("any", "lmms-lab/DocVQA").is_prepared()


def test_a_task_without_a_subset_takes_no_other(cache):
    for subset in ("DocVQA", "InfographicVQA"):
        prepared(cache, "lmms-lab", "doc_vqa", subset)
    assert DataSet("any", "lmms-lab/DocVQA").absent(), "which of them would be a guess"
    prepared(cache, "lmms-lab", "doc_vqa", "default")
    assert DataSet("any", "lmms-lab/DocVQA").absent() is None
    prepared(cache, "lmms-lab", "mme", "other")
    snapshot = downloaded(cache, "lmms-lab/MME")
    assert found_folder("lmms-lab/MME", None) == snapshot, "not the subset that another task has loaded"


def test_local_files_and_folders(tmp_path):
    here, gone = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    here.write_text("{}\n")
    config = dict(dataset_path="json", dataset_kwargs=dict(data_files=dict(test=str(here))))
    assert data_set("mine", config).absent() is None
    config["dataset_kwargs"]["data_files"] = dict(train=[str(here)], test=str(gone))
    assert data_set("mine", config).absent() == f"- mine: there is no {gone}"
    assert DataSet("mine", "json", files=(str(tmp_path / "*.jsonl"), "https://x/y.json")).absent() is None
    assert DataSet("mine", "json", files=("*.jsonl",), folder=str(tmp_path)).absent() is None
    assert DataSet("mine", str(tmp_path)).absent() is None
    assert DataSet("mine", str(tmp_path / "none")).absent() == f"- mine: there is no {tmp_path / 'none'}"


def test_a_task_in_python_does_not_say():
    assert data_set("mine", dict(task="mine")) is None


def test_one_message_lists_all_and_what_can_run(cache):
    absent = {name: DataSet(name, f"lmms-lab/{name}").absent() for name in ("mme", "pope")}
    text = str(MissingData(absent, ["gqa", "mine"]))
    assert text.startswith("the data of 2 tasks are missing:\n- mme: ")
    assert text.count("hf download --repo-type dataset lmms-lab/") == 2
    assert str(cache / "hub") in text and "HF_HOME" in text and "ASVR_DOWNLOAD=1" in text
    assert text.endswith("--skip-missing runs those whose data are here: gqa, mine.")
    assert "--skip-missing" not in str(MissingData(absent, []))
