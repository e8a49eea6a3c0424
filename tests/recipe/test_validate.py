"""Mistakes in a config are found before anything is built, all together, and named."""

import copy
import subprocess
import sys

import pytest
from data_helpers import FixedTokens
from mmengine.config import Config

from asvr.base.hub import MissingWeights
from asvr.base.log_once import forget
from asvr.recipe.build import check_data
from asvr.recipe.config import load_config
from asvr.recipe.preflight import check_sizes, preflight
from asvr.recipe.recipe import Recipe
from asvr.recipe.signatures import constructor_fields
from asvr.recipe.validate import check_config
from asvr.registry import DATASETS, ENCODERS, HEADS, LLMS, MODEL_TRANSFORMS, PROJECTORS

TINY = dict(
    text_tokenizer=dict(type="ByteLevelBPE", vocab_size=300, corpus=dict(type="EasyVQA")),
    model=dict(
        type="VLM",
        encoder=dict(
            type="HFVisionEncoder",
            arch=dict(
                model_type="siglip_vision_model",
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=16,
                patch_size=4,
            ),
        ),
        projector=dict(type="MLPProjector"),
        llm=dict(
            type="HFCausalLM",
            arch=dict(
                model_type="llama", hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
            ),
        ),
        reconstruction=[
            dict(
                name="semantic",
                tokenizer=dict(type="SemanticTokenizer", depth=2, codebook_size=8),
                head=dict(type="DepthTransformerHead", width=16, layers=1, num_heads=2),
                loss=dict(type="CodeCrossEntropy"),
                weight=1.0,
                shift=1,
            )
        ],
    ),
    data=dict(
        train=dict(type="EasyVQA"),
        template="vicuna_v1",
        max_length=64,
        image_aspect="square",
        on_error="raise",
        micro_batch=2,
        global_batch=4,
        num_workers=0,
    ),
    optim=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0, clip_grad=1.0, precision="bf16"),
    schedule=dict(steps=2, warmup_ratio=0.0),
    stages=dict(
        pretrain=dict(train=["projector", "heads"]),
        finetune=dict(train=["projector", "heads", "llm"], optim=dict(lr=1e-4)),
    ),
    runtime=dict(seed=0, device="cpu", log_interval=1, checkpoint_interval=10, keep_checkpoints=1),
)


PIXEL_3X3 = dict(
    _delete_=True, type="PixelTokenizer", image_size=12, arch=dict(base_channels=32, channel_multiplier=[1, 1, 1])
)


def config(**changes) -> Config:
    """The tiny config with dotted keys (``__`` for the dot where they are keywords) changed."""
    cfg = Config(copy.deepcopy(TINY))
    cfg.merge_from_dict(copy.deepcopy({key.replace("__", "."): value for key, value in changes.items()}))
    return cfg


def recipe(**changes) -> Recipe:
    return Recipe(config(**changes))


def problems(cfg: Config) -> list[str]:
    with pytest.raises(ValueError) as error:
        check_config(cfg)
    lines = str(error.value).splitlines()
    assert lines[0].endswith(f"has {len(lines) - 1} problem(s):")
    return [line.removeprefix("- ") for line in lines[1:]]


def mixture(**source) -> dict:
    return dict(_delete_=True, type="Mixture", sources=[dict(dict(dataset=dict(type="EasyVQA")), **source)])


def test_a_right_config_passes():
    check_config(config())
    check_config(config(**{"data.train": mixture(weight=0.5, name="questions")}))
    evaluation = dict(dataset=dict(type="EasyVQA", split="test"))
    check_config(
        config(**{"evaluation": evaluation, "stages.pretrain.evaluation": None, "stages.finetune.init": "pretrain"})
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (dict(runtme=1), "runtme: unknown section; did you mean 'runtime'?"),
        (dict(model__type="VLN"), "model.type='VLN': no such model; did you mean 'VLM'?"),
        (
            {"model.encoder.type": "HFVisonEncoder"},
            "model.encoder.type='HFVisonEncoder': no such encoder; did you mean 'HFVisionEncoder'",
        ),
        (
            {"model.llm.activation_chekpointing": "full"},
            "model.llm.activation_chekpointing: HFCausalLM has no such field; did you mean 'activation_checkpointing'?",
        ),
        (
            {"model.reconstruction.0.head.type": "DepthTransformer"},
            "model.reconstruction[0].head.type='DepthTransformer': no such head; did you mean 'DepthTransformerHead'?",
        ),
        (
            {"model.reconstruction.0.head.widht": 8},
            "model.reconstruction[0].head.widht: DepthTransformerHead has no such field; did you mean 'width'?",
        ),
        ({"model.llm.arch.hiden_size": 8}, "model.llm.arch.hiden_size: llama has no such field; did you mean"),
        ({"model.reconstruction.0.wieght": 1}, "model.reconstruction[0].wieght: unknown field; did you mean 'weight'?"),
        ({"model.reconstruction.0.shift": 2}, "model.reconstruction[0].shift=2: expected one of 0, 1"),
        ({"model.reconstruction.0.shift": True}, "model.reconstruction[0].shift=True: expected one of 0, 1"),
        ({"model.encoder.layer": "last"}, "model.encoder.layer='last': expected int"),
        ({"model.encoder.layer": True}, "model.encoder.layer=True: expected int"),
        ({"model.llm.arch.num_attention_heads": 0}, "model.llm.arch.num_attention_heads=0: expected at least 1"),
        ({"model.llm.name": 7}, "model.llm.name=7: expected str | None"),
        ({"model.reconstruction.0.name": "half"}, "model.reconstruction[0].name='half': expected a name of letters"),
        ({"model.reconstruction": None}, "model.reconstruction=None: expected list[dict]"),
        ({"model.reconstruction.0.weight": -1}, "model.reconstruction[0].weight=-1: expected a number from 0"),
        ({"model.reconstruction.0.resample": "near"}, "model.reconstruction[0].resample='near': expected one of None"),
        (
            {"model.reconstruction.0.fit": dict(iteration=3)},
            "model.reconstruction[0].fit.iteration: unknown; did you mean 'iterations'?",
        ),
        (
            {"text_tokenizer.corpus.type": "EasyVQ"},
            "text_tokenizer.corpus.type='EasyVQ': no such dataset; did you mean",
        ),
        (
            {"data.train": mixture(weigth=2)},
            "data.train.sources[0].weigth: unknown field; did you mean 'weight'?",
        ),
        ({"data.train": mixture(weight=0)}, "data.train.sources[0].weight=0: expected a number above 0, or None"),
        (
            {"data.train": mixture(dataset=dict(type="EasyVQA", splitt="test"))},
            "data.train.sources[0].dataset.splitt: EasyVQA has no such field; did you mean 'split'?",
        ),
        ({"data.train": mixture(dataset=None)}, "data.train.sources[0].dataset=None: expected a component"),
        ({"data.train.splitt": "test"}, "data.train.splitt: EasyVQA has no such field; did you mean 'split'?"),
        ({"data.template": "vicuna"}, "data.template='vicuna': no such template; did you mean 'vicuna_v1'?"),
        ({"data.on_error": "ignore"}, "data.on_error='ignore': expected one of 'raise', 'skip'"),
        ({"data.image_aspect": "crop"}, "data.image_aspect='crop': expected one of 'square', 'pad', 'resize'"),
        ({"data.global_batch": 5}, "data.global_batch=5: expected a multiple of data.micro_batch=2"),
        ({"optim.precision": "fp16"}, "optim.precision='fp16': expected one of 'float32', 'bf16'"),
        ({"schedule.epochs": 1}, "schedule: expected either `epochs` or `steps`, not both"),
        (
            {"stages.pretrain.train": ["head"]},
            "stages.pretrain: train=['head']: no such component 'head'; did you mean 'heads'?",
        ),
        (
            {"stages.pretrain.train": ["lm.*.mlp"]},
            "stages.pretrain: train=['lm.*.mlp']: no such component 'lm'; did you mean 'llm'?",
        ),
        (
            {"model_transforms": dict(type="Lora")},
            "model_transforms={'type': 'Lora'}: expected a list of model transfor",
        ),
        (
            {"model_transforms": [dict(type="Lroa")]},
            "model_transforms[0].type='Lroa': no such model transform; did you",
        ),
        ({"model_transforms": [dict(type="Lora")]}, "model_transforms[0].layers is missing: Lora needs it"),
        (
            {"stages.finetune.model_transforms": [dict(type="Lora", layers=["llm"], rank=8)]},
            "stages.finetune: model_transforms[0].rank: Lora has no such field; known: alpha, dropout, layers, r",
        ),
        ({"stages.pretrain.optm": {}}, "stages.pretrain: optm: unknown; did you mean 'optim'?"),
        (
            {"stages.finetune.init": "pretrian"},
            "stages.finetune: init='pretrian': expected 'scratch', a stage before",
        ),
        (
            {"stages.pretrain.init": "finetune"},
            "stages.pretrain: init='finetune': expected 'scratch', a stage before",
        ),
        ({"evaluation": dict(dataset=dict(type="EasyVQA"), batch=3)}, "evaluation.batch: unknown field; did you mean"),
        ({"stages.finetune.optim.lr": "1e-4"}, "stages.finetune: optim.lr='1e-4': expected a number above 0"),
    ],
)
def test_a_mistake_names_key_value_and_what_was_expected(change, problem):
    (found,) = problems(config(**change))
    assert found.startswith(problem)


@pytest.mark.parametrize("transform", [type("NotCalled", (), {}), lambda: None])
def test_a_transform_that_takes_no_model_is_told(transform, monkeypatch):
    monkeypatch.setitem(MODEL_TRANSFORMS.module_dict, "mine", transform)
    (found,) = problems(config(model_transforms=[dict(type="mine")]))
    assert found.startswith(
        "model_transforms[0].type='mine': expected a class with __call__(model), or a function with"
    )


@pytest.mark.parametrize(
    ("section", "key", "problem"),
    [
        (None, "schedule", "schedule is missing"),
        ("data", "max_length", "data.max_length is missing: expected a whole number, at least 1"),
        ("schedule", "steps", "schedule: expected either `epochs` or `steps`"),
        ("text_tokenizer", "vocab_size", "text_tokenizer.vocab_size is missing: ByteLevelBPE needs it"),
        (
            "text_tokenizer",
            "type",
            "text_tokenizer.type is missing: expected a text tokenizer; known: ByteLevelBPE, HFT",
        ),
    ],
)
def test_what_is_missing_is_named(section, key, problem):
    cfg = config()
    (cfg if section is None else cfg[section]).pop(key)
    (found,) = problems(cfg)
    assert found.startswith(problem)


def test_the_objective_has_no_default_shift():
    cfg = config()
    del cfg.model.reconstruction[0]["shift"]
    assert problems(cfg) == ["model.reconstruction[0].shift is missing: expected one of 0, 1"]


def test_a_constructor_that_does_not_take_what_the_library_gives_is_told():
    class Mine:
        def __init__(self, *, layer=1):
            pass

    lacking = dict(
        encoder=(ENCODERS, "load_weights"),
        projector=(PROJECTORS, "in_width, out_width"),
        llm=(LLMS, "load_weights, vocab_size"),
        head=(HEADS, "code_width, codebook_sizes, hidden_size"),
        train=(DATASETS, "max_length, num_image_tokens, on_error, template, tokenizer"),
    )
    keys = dict(head="model.reconstruction.0.head", train="data.train")
    for kind, (registry, names) in lacking.items():
        registry.register_module(module=Mine, name="Mine")
        try:
            key = keys.get(kind, f"model.{kind}")
            (problem,) = problems(config(**{key: dict(_delete_=True, type="Mine", layer=2)}))
            assert f".type='Mine': its constructor does not take {names}, which the library gives every" in problem
            if kind == "train":  # whose texts alone are read
                check_config(config(**{"text_tokenizer.corpus": dict(_delete_=True, type="Mine")}))
        finally:
            registry.module_dict.pop("Mine")


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (dict(input_ids=[1], labels=[1], sample_id="a"), "an item, dict, has no images, image_keys"),
        (([1], [1]), "an item, tuple, has no input_ids, labels, images"),
    ],
)
def test_a_data_set_whose_items_lack_something_is_told(item, words):
    class Mine:
        def __init__(self, **given):
            pass

        def __len__(self):
            return 1

        def __getitem__(self, i):
            return item

    DATASETS.register_module(module=Mine, name="Mine")
    try:
        own = recipe(**{"data.train": dict(_delete_=True, type="Mine")})
        with pytest.raises(ValueError, match="data.train: Mine does not keep the dataset contract.*" + words):
            check_data(own, None, dict.fromkeys(("pretrain", "finetune"), FixedTokens(4)))
        asked = recipe(evaluation=dict(dataset=dict(type="Mine")), **{"data.train": dict(_delete_=True, type="Mine")})
        item = dict(input_ids=[1, 2], labels=[1, 2], images=[], image_keys=[], sample_id="a")
        with pytest.raises(ValueError, match=r"evaluation.dataset: Mine .* it has no method question\(i\)"):
            check_data(asked, None, dict.fromkeys(("pretrain", "finetune"), FixedTokens(4)))
    finally:
        DATASETS.module_dict.pop("Mine")


def test_all_problems_come_in_one_error():
    changes = {"model.encoder.typ": 1, "data.micro_batch": 0, "runtime.seed": -1, "optim.lr": 0}
    assert len(problems(config(**changes, **{"stages.finetune.optim.lr": 0}))) == 4


def test_a_field_that_a_base_class_takes_is_known():
    class Wide(HEADS.get("DepthTransformerHead")):
        def __init__(self, *, extra, **kwargs):
            super().__init__(**kwargs)

    required, known, takes_any = constructor_fields(Wide)
    assert "extra" in required and {"width", "num_heads"} <= known and not takes_any


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.reconstruction.0.head.num_heads": 3}, r"width=16 is not divisible by head\.num_heads=3"),
        ({"model.reconstruction.0.head.num_heads": 0}, r"not divisible by head\.num_heads=0"),
        ({"model.encoder.transform": dict(size=[6, 6])}, r"transform\.size=.*reads 16 x 16 pixels; leave it out"),
        ({"model.reconstruction.0.tap": 9}, r"model\.reconstruction\[0\]\.tap=9"),
        ({"model.encoder.layer": 7}, r"layer=7"),
        ({"model.encoder.arch.hidden_size": 15}, r"the model cannot be built: .*15"),
        ({"data.max_length": 17}, r"data\.max_length=17 \(stage pretrain\) has no room .* 16 tokens"),
        ({"model.reconstruction.0.tokenizer": PIXEL_3X3}, r"reconstruction\[0\].*3x3.*4x4.*resample='nearest'"),
    ],
)
def test_sizes_that_do_not_fit_are_named_without_weights(change, message):
    cfg = config(**change)
    check_config(cfg)
    with pytest.raises(ValueError, match=message):
        check_sizes(Recipe(cfg))


def test_grids_that_differ_pass_where_the_config_says_how():
    check_sizes(recipe(**{"model.reconstruction.0.tokenizer": PIXEL_3X3, "model.reconstruction.0.resample": "nearest"}))


def test_a_name_without_an_architecture_is_reported_as_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("ASVR_MODEL_ZOO", str(tmp_path))
    monkeypatch.delenv("ASVR_DOWNLOAD", raising=False)
    cfg = config(**{"model.llm": dict(_delete_=True, type="HFCausalLM", name="no-org/llm")})
    for check in (preflight, check_sizes):
        with pytest.raises(MissingWeights, match="hf download no-org/llm"):
            check(Recipe(cfg))


def test_an_encoder_is_not_trained_under_a_target_of_its_own_features():
    with pytest.raises(ValueError, match=r"stages.pretrain.train names the encoder.*'semantic'.*`encoder` of its own"):
        check_sizes(recipe(**{"stages.pretrain.train": ["encoder", "heads"]}))


def test_every_missing_model_is_in_one_error(tmp_path, monkeypatch):
    monkeypatch.setenv("ASVR_MODEL_ZOO", str(tmp_path))
    monkeypatch.delenv("ASVR_DOWNLOAD", raising=False)
    names = {
        "text_tokenizer": dict(_delete_=True, type="HFTokenizer", name="no-org/llm"),
        "model.llm.name": "no-org/llm",
        "model.encoder.name": "no-org/tower",
        "model.reconstruction.0.tokenizer.name": "asvr/no-codes",
        "data.train": dict(_delete_=True, type="LlavaDataset", ann_file="no/such.json"),
    }
    cfg = config(**names)
    with pytest.raises(MissingWeights) as error:
        preflight(Recipe(cfg))
    assert [model.name for model in error.value.models] == ["no-org/llm", "no-org/tower", "asvr/no-codes"]
    assert "- data of pretrain, finetune: no/such.json" in str(error.value)
    assert error.value.models[2].size_bytes >= 2 * 8 * 16 * 4  # depth, codes, width, float32
    late = config(**{"stages.pretrain.model": dict(encoder=dict(name="no-org/tower"))})
    with pytest.raises(MissingWeights, match="no-org/tower"):
        preflight(Recipe(late))


def test_a_stage_is_merged_as_a_file_over_its_base():
    changes = {
        "stages.finetune.data": dict(micro_batch=1, train=dict(_delete_=True, type="LlavaDataset", ann_file="a.json")),
        "stages.finetune.model": dict(reconstruction={"0": dict(weight=0.5)}, new=dict(_delete_=True, a=1)),
    }
    cfg = config(**changes)
    stage = Recipe(cfg).stages["finetune"]
    assert stage.train == ("projector", "heads", "llm") and stage.init == "pretrain"
    assert (stage.optim.lr, stage.data.micro_batch, stage.data.global_batch) == (1e-4, 1, 4)
    assert stage.data.train == dict(type="LlavaDataset", ann_file="a.json")
    assert stage.model.reconstruction[0].weight == 0.5 and stage.model.reconstruction[0].shift == 1
    assert stage.model.new == dict(a=1)
    assert Recipe(cfg).stages["finetune"].to_dict() == stage.to_dict()  # nothing was changed in the config itself
    assert Recipe(cfg).first.data.train == dict(type="EasyVQA")
    with pytest.raises(ValueError, match="no stage 'tune'.*pretrain"):
        Recipe(cfg).stage("tune")


def test_a_module_that_is_not_found_is_told_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text("custom_imports = dict(imports=['edge_bins'], allow_failed_imports=False)")
    with pytest.raises(ValueError, match="edge_bins.*start the command in the folder .*or put .* PYTHONPATH"):
        load_config(tmp_path / "own.py")


def test_an_option_that_stages_replace_is_told(tmp_path, caplog):
    (tmp_path / "base.py").write_text(f"stages = {dict(a=dict(optim=dict(lr=1.0)), b=dict(data=dict(_delete_=True)))}")
    file = str(tmp_path / "base.py")
    load_config(file, {"optim.lr": 2.0})
    assert "--cfg-options optim.lr=2.0 has no effect in a" in caplog.text and "stages.a.optim.lr" in caplog.text
    caplog.clear()
    load_config(file, {"optim.betas": [0, 1], "stages.a.optim.lr": 3.0, "optim": dict(betas=[0, 1]), "optim.lr": 2.0})
    assert not caplog.text
    load_config(file, {"data.train.root": "x"})
    assert "no effect in b" in caplog.text
    with pytest.raises(ValueError, match="no effect in a, b.*stages.a.optim.lr=2.0"):
        load_config(file, {"stages.b.optim": dict(lr=1.0), "optim.lr": 2.0})


def test_options_and_custom_imports(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("LOADED = True\n")
    (tmp_path / "config.py").write_text("custom_imports = dict(imports=['mine'])\na = [dict(b=1)]\n")
    monkeypatch.chdir(tmp_path)
    cfg = load_config("config.py", {"a.0.b": 2})
    assert cfg.a[0].b == 2 and "mine" in sys.modules
    with pytest.raises(ValueError, match=r"a\.7\.b"):
        load_config("config.py", {"a.7.b": 2})
    (tmp_path / "config.py").write_text("custom_imports = dict(imports=['not_mine'])\n")
    with pytest.raises(ValueError, match="custom_imports.*not_mine"):
        load_config("config.py")


def test_importing_the_package_loads_neither_torch_nor_transformers():
    code = (
        "import sys, asvr, asvr.base.hub, asvr.recipe.config; assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "recipe, command",
    [("studies/targets_mini", "asvr study"), ("tokenizers/semantic_mini", "asvr train-tokenizer")],
)
def test_a_config_of_another_kind_is_told_with_its_command(recipe, command):
    with pytest.raises(ValueError, match=f"is not a training config: give it to {command}$"):
        check_config(load_config(recipe))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, []),
        ({"stages.finetune.train": ["llm"]}, []),  # the head of pretrain
        ({"stages.pretrain.train": ["projector"]}, ["pretrain"]),
        ({"stages.pretrain.train": ["projector"], "stages.finetune.train": ["llm"]}, ["pretrain", "finetune"]),
        ({"stages.finetune.train": ["llm"], "stages.finetune.init": "scratch"}, ["finetune"]),
        ({"stages.finetune.train": ["llm"], "stages.finetune.init": "org/model"}, []),  # it may have heads
        ({"stages.finetune.train": ["llm"], "stages.pretrain.model": dict(reconstruction=[])}, ["finetune"]),
        (
            {"stages.finetune.train": ["llm"], "stages.pretrain.model": dict(reconstruction={"0": dict(weight=0.0)})},
            ["finetune"],
        ),
        ({"stages.pretrain.train": ["projector", "heads.semantic.classifiers"]}, []),
        ({"stages.pretrain.train": ["projector"], "model.reconstruction.0.weight": 0.0}, []),
    ],
)
def test_a_head_that_no_stage_trains_is_told(changes, told, caplog):
    forget()
    whole = recipe(**changes)
    check_sizes(whole)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        f"stages.{name}.train={list(whole.stages[name].train)} lacks 'heads', and no earlier stage trains the head of "
        "target 'semantic': the head keeps its random weights. Add 'heads' to `train`"
        for name in told
    ]
    forget()
    caplog.clear()
    check_sizes(whole.only("finetune"))
    assert len(caplog.records) == ("finetune" in told), "the stages before are looked at too"
