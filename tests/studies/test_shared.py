"""Shared trainings of a study: trained once, all arms and seeds start from them, and mistakes are told before a run."""

import json
import shutil
from pathlib import Path
from unittest.mock import patch

import pytest
from mmengine.hooks import Hook
from run_helpers import ROOT, read_metrics
from study_helpers import run, write_files

from asvr.engine import checkpoint
from asvr.recipe.recipe import load_recipe
from asvr.registry import HOOKS
from asvr.studies import run as engine_study
from asvr.studies.existing import require_same_shared
from asvr.studies.run import run_study
from asvr.studies.shared import require_fitting_starts
from asvr.studies.study_file import load_study

WORDS = """
_base_ = ['./base.py']
model = dict(reconstruction=[])
data = dict(max_length=300)
stages = dict(_delete_=True, words=dict(
    init='scratch', train=['llm'], evaluation=None,
    data=dict(train=dict(captions=True, with_images=False, in_words=True))))
"""
STARTS = """
shared = dict(words='words.py')
seeds = [0]
_start = dict(init='study:words')
arms = dict(
    none=dict(model=dict(reconstruction=[]), stages=dict(pretrain=_start)),
    late=dict(stages=dict(pretrain=_start)),
    scratch=dict(model=dict(reconstruction=[])))
_hook = [dict(type='KeepsOrder')]
arms = {arm: dict(own, custom_hooks=_hook) for arm, own in arms.items()}
"""
ORDER: dict[str, list] = {}


@HOOKS.register_module()
class KeepsOrder(Hook):
    """Keeps which samples each step has, by the work dir of the run and its stage."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        of_step = [key for batch in data_batch for key in batch.sample_ids]
        ORDER.setdefault(str(Path(runner.work_dir).parent), []).append(of_step)


def write(folder, more=""):
    write_files(folder, STARTS + more)
    (folder / "words.py").write_text(WORDS)
    return folder / "study.py"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    pytest.importorskip("easy_vqa", reason="the extra 'mini' is not installed")
    folder = tmp_path_factory.mktemp("study")
    write(folder)
    done = run(folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished study."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("cache"))
    return tmp_path


def first_step(folder, arm):
    return next(line for line in read_metrics(folder / f"out/{arm}/seed_0") if line["stage"] == "pretrain")


def test_arms_begin_with_the_shared_model(finished):
    none, late, scratch = (first_step(finished, arm)["loss_text"] for arm in ("none", "late", "scratch"))
    assert none == late != scratch
    work_dir = finished / "out/shared/words"
    starts = {
        arm: checkpoint.read_meta(finished / f"out/{arm}/seed_0/pretrain/checkpoints/step_00000003")["start"]
        for arm in ("none", "late", "scratch")
    }
    assert starts["none"] == starts["late"] is not None and starts["scratch"] is None
    assert (work_dir / "words/checkpoints/step_00000003").is_dir() and (work_dir / "console.log").is_file()


def test_all_arms_of_a_seed_have_one_order_of_samples(finished):
    orders = {stage: [] for stage in ("pretrain", "finetune")}
    for arm in ("none", "late", "scratch"):
        for stage, found in orders.items():
            found.append(ORDER[str(finished / f"out/{arm}/seed_0/{stage}")])
    for found in orders.values():
        assert len(found[0]) == 3 and len(found[0][0]) == 8
        assert found[0] == found[1] == found[2] and found[0][0] != found[0][1]


def test_a_second_call_trains_nothing(finished):
    files = sorted((finished / "out").rglob("model.safetensors"))
    before = [file.stat().st_mtime_ns for file in files]
    with patch.object(engine_study, "_one_shared", lambda *_: pytest.fail("it is trained again")):
        done = run(finished)
    assert done.returncode == 0, done.stderr
    assert len(files) >= 8 and [file.stat().st_mtime_ns for file in files] == before


def test_an_interrupted_shared_training_goes_on(copied):
    """It was stopped between its training and its model."""
    model = copied / "out/shared/words/model"
    before = (model / "asvr.json").read_bytes()
    shutil.rmtree(model)
    study = load_study(copied / "study.py")
    weights = copied / "out/shared/words/words/checkpoints/step_00000003/model.safetensors"
    changed = weights.stat().st_mtime_ns
    assert engine_study._one_shared(study.to_dict(), "words", copied / "out") is None
    assert weights.stat().st_mtime_ns == changed and (model / "asvr.json").read_bytes() == before


def test_the_report_says_what_the_arms_begin_with(finished):
    text = (finished / "out/report.md").read_text()
    [start, holds] = [line for line in text.splitlines() if "Start:" in line or "hold for this start" in line]
    assert start == (
        "- Start: all seeds of `none` (pretrain), `late` (pretrain) begin with one model, `words` "
        f"(`{finished / 'words.py'}`, seed 0, words 3 steps)."
    )
    assert "They do not cover another training of it" in holds
    assert "do not begin with a shared model: `scratch`." in holds
    [about] = json.loads((finished / "out/report.json").read_text())["about"]["starts"]
    assert about["arms"] == dict(none=["pretrain"], late=["pretrain"]) and about["seed"] == 0


def refused(folder) -> str:
    with (
        patch.object(engine_study, "_one", lambda *_: pytest.fail("a run has started")),
        patch.object(engine_study, "_one_shared", lambda *_: pytest.fail("a shared training has started")),
    ):
        done = run(folder)
    assert done.returncode == 1
    return done.stderr.strip().splitlines()[-1]


def test_a_shared_training_that_has_changed_is_told_before_any_run(copied):
    (copied / "words.py").write_text(WORDS + "optim = dict(lr=0.5)\n")
    line = refused(copied)
    assert (
        "shared 'words' was changed after it had run (stage words: optim.lr: 0.002 in the checkpoint, 0.5 now)" in line
    )
    assert line.endswith(": " + ", ".join(str(copied / "out" / name) for name in ("shared/words", "none", "late")))
    (copied / "words.py").write_text(WORDS + "runtime = dict(log_interval=2)\n")
    require_same_shared(load_study(copied / "study.py"), copied / "out")


def test_arms_that_began_with_another_model_are_told(copied):
    description = copied / "out/shared/words/model/asvr.json"
    description.write_text(description.read_text() + "\n")  # as of another model
    line = refused(copied)
    assert "arm 'none', stage pretrain: it did not begin with the model that study:words is now" in line
    assert "scratch" not in line and line.endswith(f"{copied / 'out/none'}, {copied / 'out/late'}")


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("model/asvr.json", "out/shared/words/model: this model is not complete (.*asvr.json: cannot be read"),
        ("model/model.safetensors", "model is not complete (model.safetensors is missing or damaged): remove this"),
        ("words/checkpoints", "it has a model and not the last checkpoint of its training"),
    ],
)
def test_a_model_that_is_not_complete_is_told(copied, gone, message):
    file = copied / "out/shared/words" / gone
    shutil.rmtree(file) if file.is_dir() else file.unlink()
    line = refused(copied)
    assert all(part in line for part in message.split(".*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("arms['none']['stages'] = dict(pretrain=dict(init='study:word'))", "did you mean 'words'?"),
        (
            "arms['none']['stages'] = dict(pretrain=dict(init='study:word'))",
            "arms.none.stages.pretrain.init='study:word': expected a model of `shared`; ",
        ),
        (
            "tokenizers = dict(pixel='t.py'); arms['none']['stages'] = dict(pretrain=dict(init='study:pixel'))",
            "arms.none.stages.pretrain.init='study:pixel': expected a model of `shared`; 'pixel' is a visual tokenizer",
        ),
        (
            "arms['late']['model'] = dict(reconstruction={'0': dict(tokenizer=dict(name='study:words'))})",
            "arms.late.model.reconstruction.0.tokenizer.name='study:words': expected a visual tokenizer of "
            "`tokenizers`; 'words' is a shared model, which only stages.NAME.init can name",
        ),
        ("tokenizers = dict(words='t.py')", "shared.words: expected another name: `tokenizers` has this one"),
        ("arms['shared'] = dict()", "arms.shared: expected another name"),
        ("shared = ['words.py']", "shared=['words.py']: expected dict(NAME=...)"),
        ("shared = dict(words=3)", "shared.words=3: expected a dict of changes, the path of a config"),
        ("shared = dict(words='wrods.py')", "shared 'words': there is no config file"),
        (
            "shared = dict(first=dict(stages=dict(pretrain=dict(init='study:words'))), words='words.py')",
            "shared.first.stages.pretrain.init='study:words': expected a model of `shared`; 'words' does not come "
            "before it",
        ),
        ("shared = dict(words=dict(config='words.py', modle=dict()))", "shared 'words': .* 1 problem(s)"),
    ],
)
def test_wrong_places_and_names_are_told(tmp_path, change, message):
    with pytest.raises(ValueError) as error:
        load_study(write(tmp_path, change))
    assert all(part in str(error.value) for part in message.split(".*")), error.value


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (
            "text_tokenizer = dict(vocab_size=280)",
            [
                "stages.pretrain.init='study:words': expected",
                "text_tokenizer: ",
                " of 300 tokens have other ids",
                "None",
            ],
        ),
        (
            "text_tokenizer = dict(corpus=dict(scenes=40, concepts=20))",
            ["arms.none.stages.pretrain.init='study:words'", "text_tokenizer: ", "tokens have other ids"],
        ),
        (
            "model = dict(llm=dict(arch=dict(num_hidden_layers=2)))",
            ["arms.none.stages.pretrain.init='study:words'", "tensors: llm.", "is missing and ["],
        ),
        (
            "model = dict(llm=dict(arch=dict(intermediate_size=64)))",
            ["arms.none.stages.pretrain.init='study:words'", "3 tensors: llm.", "[32, 48]", "[32, 64]"],
        ),
    ],
)
def test_a_model_that_does_not_fit_is_told_before_any_run(tmp_path, change, parts):
    write(tmp_path)
    (tmp_path / "words.py").write_text(
        WORDS + change.replace("model = dict(", "model = dict(reconstruction=[], ") + "\n"
    )
    line = refused(tmp_path)
    assert all(part in line for part in parts), line


def test_a_shared_training_may_start_from_an_earlier_one_and_name_tokenizers(tmp_path):
    more = """
tokenizers = dict(pixel='t.py')
_name = dict(tokenizer=dict(name='study:pixel'))
shared['more'] = dict(config='words.py', stages=dict(words=dict(init='study:words')), runtime=dict(seed=7))
shared['codes'] = dict(model=dict(reconstruction={'0': _name}))
"""
    study = load_study(write(tmp_path, more))
    require_fitting_starts(study, tmp_path / "out")
    cfg = engine_study.shared_config(study, "more", tmp_path / "out")
    assert cfg.stages.words.init == str(tmp_path / "out/shared/words/model") and cfg.runtime.seed == 7
    codes = engine_study.shared_config(study, "codes", tmp_path / "out")
    assert codes.model.reconstruction[0].tokenizer.name == str(tmp_path / "out/tokenizers/pixel/tokenizer")
    trained = []
    with (
        patch.object(engine_study, "_train_tokenizer", lambda config, folder: trained.append(folder.name)),
        patch.object(engine_study, "_train_shared", lambda study, names, out: trained.extend(names)),
        patch.object(engine_study, "_train_arms", lambda *_: []),
    ):
        run_study(study, tmp_path / "out")
        assert trained == ["pixel", "words", "more", "codes"]
        trained.clear()
        run_study(study, tmp_path / "out", arms=["none"])
        assert trained == ["words"]  # what this arm does not use can wait
        trained.clear()
        study.arms.late = dict(stages=dict(pretrain=dict(init="study:codes")))
        run_study(study, tmp_path / "out", arms=["late"])
    assert trained == ["pixel", "codes"]


def test_a_shared_training_that_fails_ends_the_study_in_one_line(tmp_path):
    write(tmp_path, "shared = dict(words=dict(config='words.py', data=dict(train=dict(scenes=0))))")
    done = run(tmp_path)
    assert done.returncode == 1 and not (tmp_path / "out/none").exists()
    [line] = done.stderr.strip().splitlines()[-1:]
    assert "shared 'words': ValueError" in line and "scenes=0: expected at least 1" in line
    assert "No run can start from it" in line


def test_the_words_of_the_studies_have_the_text_tokenizer_and_sizes_of_their_arms(tmp_path):
    words, scenes = (load_recipe(ROOT / f"configs/studies/_base_{name}.py") for name in ("words", "scenes"))
    assert words.text_tokenizer == scenes.text_tokenizer
    [stage] = words.stages.values()
    assert stage.train == ("llm",) and not stage.data.train.with_images and not stage.evaluation.dataset.with_images
    file = tmp_path / "study.py"
    arms = "{arm: dict(config=f'asvr::targets/scenes/{arm}', stages=dict(pretrain=dict(init='study:words')))"
    file.write_text(
        "config, seeds, baseline = 'asvr::studies/_base_scenes', [0], 'asvr'\n"
        "shared = dict(words='asvr::studies/_base_words')\n"
        f"arms = {arms} for arm in ('asvr', 'jarvis', 'ross', 'shared_vocabulary', 'several')}}\n"
    )
    require_fitting_starts(load_study(file), tmp_path / "out")
