"""What a run tells its user: each line once, each error with its process, and of the stages that run alone."""

import json
import logging
import subprocess
import sys

import pytest
from data_helpers import chat
from run_helpers import ROOT, call_tool, tiny_command, tiny_env

from asvr.base.log import set_up_logging
from asvr.models.llms import HFCausalLM

LLAMA = dict(model_type="llama", hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)


@pytest.fixture
def log(tmp_path):
    """Where what is told lands, as in a run."""
    logger = logging.getLogger("asvr")
    before = logger.handlers[:], logger.level, logger.propagate
    logger.handlers = []
    set_up_logging(tmp_path / "log.txt")
    yield lambda: [line.partition(" ")[2] for line in (tmp_path / "log.txt").read_text().splitlines()]
    for handler in logger.handlers:
        handler.close()
    logger.handlers, logger.level, logger.propagate = before


# Once ---------------------------------------------------------------------------------------------------------------


def test_a_run_tells_a_setting_of_its_model_once(tmp_path):
    options = ["model.reconstruction.0.tap=1", "model.llm.arch.vocab_size=7"]
    options += ["schedule.steps=2", "stages.pretrain.schedule.steps=2", "stages.blind.schedule.steps=2"]
    done = call_tool(*tiny_command(tmp_path / "run")[1:], *options)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "run/train.log").read_text().splitlines()
    for told in ("reconstruction[0].tap=1 is the output of the last block", "model.llm.arch.vocab_size=7 is not used"):
        assert len([line for line in lines if told in line]) == 1, told


def test_a_folder_that_differs_is_told_once_a_log(tmp_path, log):
    HFCausalLM(arch=LLAMA, vocab_size=40).model.save_pretrained(tmp_path / "llm")
    given = dict(name=str(tmp_path / "llm"), load_weights=False)
    for _ in range(3):
        HFCausalLM(arch=dict(LLAMA, rms_norm_eps=0.5), **given)
    assert len([line for line in log() if "differs from `arch`" in line]) == 1
    set_up_logging(tmp_path / "log.txt")
    for eps in (0.5, 0.25):
        HFCausalLM(arch=dict(LLAMA, rms_norm_eps=eps), **given)
    assert len([line for line in log() if "differs from `arch`" in line]) == 3


def test_columns_that_are_not_read_are_told_once(tmp_path, log):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    from asvr.data.parquet import ParquetDataset

    columns = dict(question=["what?"], answer=["red"], difficulty=[3])
    parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
    for _ in range(3):
        ParquetDataset(files=str(tmp_path / "x.parquet"))
    assert len([line for line in log() if "columns that are not read: difficulty" in line]) == 1


# The vocabulary -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "told"), [(7, True), (32000, True), (40, False), (None, False)])
def test_a_vocabulary_that_is_not_used_is_told(log, given, told):
    own = {} if given is None else dict(vocab_size=given)
    model = HFCausalLM(arch=dict(LLAMA, **own), vocab_size=40)
    assert model.vocab_size == 40 == model.model.get_input_embeddings().num_embeddings
    words = f"model.llm.arch.vocab_size={given} is not used: an LLM without `name` gets as many embeddings as the text"
    assert len([line for line in log() if words in line]) == told


def test_a_vocabulary_that_is_used_is_not_told(log):
    assert HFCausalLM(arch=dict(LLAMA, vocab_size=7)).vocab_size == 7
    assert not [line for line in log() if "vocab_size" in line]


# Processes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("launcher", "prefix"),
    [
        (dict(RANK="1", WORLD_SIZE="2"), "process 1 of 2: "),
        (dict(RANK="0", WORLD_SIZE="2"), "process 0 of 2: "),
        (dict(RANK="0", WORLD_SIZE="1"), ""),
        (dict(SLURM_PROCID="3", SLURM_STEP_NUM_TASKS="4"), "process 3 of 4: "),
        (dict(SLURM_PROCID="0"), ""),
        ({}, ""),
    ],
)
def test_an_error_names_its_process(tmp_path, monkeypatch, log, launcher, prefix):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    done = call_tool("tools/train.py", tmp_path / "no.py")
    assert done.returncode == 1
    assert done.stderr.strip() == f"{prefix}error: there is no config file {tmp_path / 'no.py'}"


@pytest.mark.parametrize(("launcher", "prefix"), [(dict(RANK="1", WORLD_SIZE="2"), "process 1 of 2: "), ({}, "")])
def test_a_warning_before_there_is_a_log_names_its_process(tmp_path, launcher, prefix):
    tool = tmp_path / "tool.py"
    tool.write_text(
        "import logging\nfrom asvr.commands.cli import run_tool\n"
        "def main():\n    logging.getLogger('asvr').warning('an option has no effect')\n"
        "if __name__ == '__main__':\n    run_tool(main)\n"
    )
    env = dict(tiny_env(), PYTHONPATH=str(ROOT), **launcher)
    done = subprocess.run([sys.executable, str(tool)], capture_output=True, text=True, env=env, timeout=60)
    assert done.stderr == f"{prefix}an option has no effect\n"


def test_an_interruption_names_its_process(tmp_path):
    tool = tmp_path / "tool.py"
    tool.write_text(
        "import os, signal\nfrom asvr.commands.cli import run_tool\nfrom asvr.base.interruption import interruptible\n"
        "@interruptible()\ndef main():\n    os.kill(os.getpid(), signal.SIGTERM)\n"
        "if __name__ == '__main__':\n    run_tool(main)\n"
    )
    env = dict(tiny_env(), RANK="1", WORLD_SIZE="2", PYTHONPATH=str(ROOT))
    done = subprocess.run([sys.executable, str(tool)], capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 75
    assert done.stderr.splitlines()[-1].startswith("process 1 of 2: SIGTERM: the run was stopped")


# Stages that run ----------------------------------------------------------------------------------------------------

TWO = """
text_tokenizer = dict(type='ByteLevelBPE', vocab_size=300, corpus=dict(type='LlavaDataset', ann_file='{rows}'))
model = dict(
    type='VLM',
    encoder=dict(type='HFVisionEncoder', arch=dict(model_type='siglip_vision_model', hidden_size=8,
        intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4)),
    projector=dict(type='MLPProjector'),
    llm=dict(type='HFCausalLM', arch=dict(model_type='llama', hidden_size=16, intermediate_size=24,
        num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=64)),
    reconstruction=[],
)
data = dict(train=dict(type='LlavaDataset', ann_file='{rows}'), template='mistral', max_length=60,
    image_aspect='square', on_error='raise', micro_batch=2, global_batch=2, num_workers=0)
optim = dict(type='AdamW', lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0, clip_grad=1.0, precision='float32')
schedule = dict(steps=1, warmup_ratio=0.0)
stages = dict(
    first=dict(init='scratch', train=['llm'], {first}),
    last=dict(init='scratch', train=['llm']),
)
runtime = dict(seed=0, device='cpu', log_interval=1, checkpoint_interval=1, keep_checkpoints=1)
"""
"""What is wrong in a stage, and what is told where it runs."""
WRONG = {
    "max_length": ("data=dict(max_length=65)", "the LLM has 64 positions"),
    "no room": ("data=dict(max_length=4)", "no room for text"),
    "no file": ("data=dict(train=dict(ann_file='/none/x.json'))", "'/none/x.json' is missing"),
    "template": ("data=dict(template='chatml')", "has no special token"),
    "no weights": ("model=dict(llm=dict(name='nobody/nothing'))", "nobody/nothing"),
}


@pytest.fixture
def two_stages(tmp_path):
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([dict(conversations=chat("what?", "red"))] * 4))

    def config(first: str):
        (tmp_path / "two.py").write_text(TWO.format(rows=rows, first=first))
        return tmp_path / "two.py"

    return config


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", WRONG)
def test_only_the_stages_that_run_are_checked(two_stages, tmp_path, kind):
    first, words = WRONG[kind]
    config = two_stages(first)
    command = ["tools/train.py", config, "--work-dir", tmp_path / "run"]
    done = call_tool(*command, "--stage", "last")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/last/done.json").is_file()
    asked = call_tool(
        *("tools/eval.py", config, "--work-dir", tmp_path / "run", "--stage", "last"),
        *("--questions", tmp_path / "rows.json", "--image-folder", tmp_path),
    )
    assert asked.returncode == 0, asked.stderr
    for stage in ([], ["--stage", "first"]):
        done = call_tool(*command, *stage)
        assert done.returncode == 1 and words in done.stderr
    assert call_tool(*command, "--stage", "other").stderr.strip().startswith("error: --stage other: the config has no")


@pytest.mark.parametrize("kind", ["max_length", "no room"])
def test_data_of_one_stage_are_looked_at_alone(two_stages, tmp_path, kind):
    first, words = WRONG[kind]
    command = ["tools/check_data.py", two_stages(first), "--workers", 0, "--out", tmp_path / "out"]
    assert call_tool(*command, "--stage", "last").returncode == 0
    done = call_tool(*command)
    assert done.returncode == 1 and words in done.stderr
    assert "--stage other: expected one of first, last" in call_tool(*command, "--stage", "other").stderr


def test_a_wrong_key_of_any_stage_is_told(two_stages, tmp_path):
    done = call_tool("tools/train.py", two_stages("datta={}"), "--work-dir", tmp_path / "run", "--stage", "last")
    assert done.returncode == 1 and "datta: unknown" in done.stderr
