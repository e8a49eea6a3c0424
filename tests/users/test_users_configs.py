"""A mistake in a config or an option is told in one short line that names the key."""

import pytest
from mmengine.config import Config
from run_helpers import ROOT, call_tool

from asvr.base.arch import causal_problem, check_arch, tower_problem
from asvr.base.text import nearest
from asvr.commands.cli import parse_cfg_options
from asvr.recipe.config import load_config, stage_config
from asvr.recipe.preflight import check_sizes
from asvr.recipe.recipe import Recipe
from asvr.recipe.validate import check_config

CONFIG = "configs/benchmarks/small_asvr.py"  # a llama of 12 heads; both stages have sections of their own
WORDS = 60


def told(option: str) -> str:
    """What a dry run says of a config with this option, on one line."""
    with pytest.raises(ValueError) as refused:
        cfg = load_config(ROOT / CONFIG, parse_cfg_options([option]))
        check_config(cfg)
        check_sizes(Recipe(cfg))
    heading, _, problem = str(refused.value).rpartition(" has 1 problem(s):\n- ")
    assert "\n" not in problem and len(problem.split()) < WORDS
    return problem


LLM = "model.llm.arch"


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        (
            f"{LLM}.num_key_value_heads=5",
            f"{LLM}.num_key_value_heads=5 does not divide {LLM}.num_attention_heads=12: expected one of 1, 2, 3, 4, 6,",
        ),
        (f"{LLM}.model_type=brandnew", f"{LLM}.model_type='brandnew': unknown to transformers; known: "),
        (f"{LLM}.model_type=lama", f"{LLM}.model_type='lama': unknown to transformers; did you mean 'llama'"),
        (f"{LLM}.model_type=t5", f"{LLM}.model_type='t5' is an encoder-decoder (model_type 't5'): expected a causal"),
        (f"{LLM}.model_type=bert", f"{LLM}.model_type='bert' is an encoder (model_type 'bert'), whose tokens also see"),
        (f"{LLM}.model_type=llava", f"{LLM}.model_type='llava' is a complete multimodal model"),
        (f"{LLM}.model_type=siglip_vision_model", f"{LLM}.model_type='siglip_vision_model' is not an LLM"),
        ("model.encoder.arch.model_type=llama", "model.encoder.arch.model_type='llama' is not a vision tower"),
        (f"{LLM}.num_hidden_layers=0", f"{LLM}.num_hidden_layers=0: expected at least 1"),
        (f"{LLM}.vocab_size=-1", f"{LLM}.vocab_size=-1: expected at least 1"),
        (f"{LLM}.num_key_value_heads=0", f"{LLM}.num_key_value_heads=0: expected at least 1"),
        (f"{LLM}.zzzzz=3", f"{LLM}.zzzzz: llama has no such field; known: "),
        (f"{LLM}.hidden_act=sillu", "the model cannot be built: llm.arch.hidden_act='sillu' is unknown to"),
        ("model.encoder.arch.hidden_act=sillu", "the model cannot be built: encoder.arch.hidden_act='sillu'"),
        (f"{LLM}.rope_parameters.rope_type=no", "the model cannot be built: llm.arch.rope_parameters.rope_type='no'"),
        ("model.encoder.arch.patch_size=500", "the model cannot be built: encoder.arch: patch_size=500 is larger than"),
    ],
)
def test_a_wrong_architecture_names_its_key(option, problem):
    assert told(option).startswith(problem)


NOT_A_DICT = ", not a dict: give the same type, or, in a config file, add _delete_=True to the dict to replace"
ENTRY = ": one entry of a list can only be replaced by a dict: give the whole list"


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("data.template.system=x", f"data.template is 'plain'{NOT_A_DICT}"),
        ("runtime.seed.x=1", f"runtime.seed is 0{NOT_A_DICT}"),
        ("model.reconstruction.0.shift.x=1", f"model.reconstruction.0.shift is 1{NOT_A_DICT}"),
        (
            "stages.pretrain.train.x=1",
            "stages.pretrain.train is a list of 2: expected a number from 0 to 1, not 'x'",
        ),
        ("model.reconstruction.5.shift=0", "model.reconstruction is a list of 1: expected a number from 0 to 0"),
        ("model.reconstruction.-1.shift=0", "model.reconstruction is a list of 1: expected a number from 0 to 0"),
        ("model.reconstruction.0=3", f"model.reconstruction.0{ENTRY} model.reconstruction"),
        ("optim.betas.0=0.5", f"optim.betas.0{ENTRY} optim.betas"),
    ],
)
def test_an_option_that_does_not_fit_names_what_stands_there(option, why):
    found = told(option)
    assert found.startswith(f"--cfg-options {option.partition('=')[0]}=") and f"does not fit {ROOT / CONFIG}: " in found
    assert why in found


@pytest.mark.parametrize("option", ["=3", ".x=1", "model..llm=2", "model.=2"])
def test_a_key_without_a_name_is_refused(option):
    assert told(option) == f"--cfg-options {option!r}: expected KEY=VALUE"


def test_brackets_that_do_not_match_are_told():
    assert told("optim.betas=[0.9,") == "--cfg-options: Imbalanced brackets exist in [0.9,"


@pytest.mark.parametrize("option", ["stages=3", "stages.pretrain=3"])
def test_stages_that_are_none_are_told(option):
    assert told(option).startswith(f"{option.partition('=')[0]}: expected dict(")


def test_a_tool_ends_with_that_line():
    ran = call_tool("tools/train.py", CONFIG, "--dry-run", "--cfg-options", f"{LLM}.num_key_value_heads=5")
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    assert ran.stderr.rstrip().endswith("expected one of 1, 2, 3, 4, 6, 12")


LONG = dict(model=dict(reconstruction=[dict(name=f"target_{n}" * 20, shift=0) for n in range(40)]))


def test_a_dict_over_a_long_list_is_told_shortly(tmp_path):
    (tmp_path / "base.py").write_text(f"model = {LONG['model']!r}")
    (tmp_path / "child.py").write_text("_base_ = 'base.py'\nmodel = dict(reconstruction=dict(shift=1))")
    with pytest.raises(ValueError, match="model.reconstruction is a dict here, but .* in its _base_: give") as refused:
        load_config(tmp_path / "child.py")
    assert len(str(refused.value)) < 800
    stage = dict(LONG, stages=dict(a=dict(model=dict(reconstruction={"x": dict(shift=1)}))))
    with pytest.raises(ValueError, match="^stages.a: model.reconstruction is a list of 40: expected a number"):
        stage_config(Config(stage), "a")
    wide = Config(dict(LONG, stages=dict(a=dict(data=dict(pack=LONG)))))
    with pytest.raises(ValueError) as refused:
        check_config(wide)
    assert len(str(refused.value)) < 3000


def test_a_part_that_is_no_component_is_told_once():
    assert told("model.projector=x") == "model.projector='x': expected a projector, dict(type=...)"


def test_a_default_that_does_not_fit_is_told_to_be_one():
    arch = dict(model_type="mixtral", hidden_size=36, num_attention_heads=6)
    (problem,) = check_arch("llm.arch", arch, causal_problem)
    assert problem.startswith("llm.arch.num_key_value_heads=8 (the default of mixtral, not in the config) does not")


def test_what_is_right_still_passes():
    assert check_arch("a", dict(model_type="bert", is_decoder=True), causal_problem) == []
    assert check_arch("a", dict(model_type="gpt2", n_embd=12, n_head=3), causal_problem) == []
    assert check_arch("a", dict(model_type="siglip_vision_model"), tower_problem) == []
    assert check_arch("a", dict(model_type="siglip"), tower_problem) == []


def test_of_many_names_the_nearest_are_told():
    names = [f"name_{n}" for n in range(30)]
    assert nearest("name_77", names).startswith("did you mean ")
    found = nearest("zzz_1", names)
    assert found.startswith("known: name_1") and found.endswith("and 24 more") and found.count(",") == 5
    assert nearest("zzz", ["b", "a"]) == "known: a, b" and nearest("zzz", []) == "known: none"
