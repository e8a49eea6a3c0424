"""What users met: a run goes on, or is refused in one line, and never on other weights than it was made with."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from parallel_helpers import LLAMA, launch, losses, make_config, train
from run_helpers import SIGLIP, read_metrics
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import asvr
from asvr.benchmarks.questions import evaluate_folder, evaluate_run
from asvr.data.transforms import ImageTransform
from asvr.engine import ahead, checkpoint, prepare
from asvr.engine.checkpoint import newest
from asvr.engine.saver import copied
from asvr.engine.sharded import load_whole_optimizer
from asvr.models.component import fingerprint_of
from asvr.models.encoders.base import Encoder
from asvr.models.tokenizers.base import VisualTokenizer
from asvr.recipe.config import load_config
from asvr.recipe.recipe import Recipe
from asvr.registry import ENCODERS, VISUAL_TOKENIZERS

RANDOM_TOWER = {
    "model.encoder.name": None,
    "model.encoder.arch": SIGLIP,
}
NO_EVALUATION = dict(evaluation=None)


@VISUAL_TOKENIZERS.register_module()
class RandomCodes(VisualTokenizer):
    """Nearest of random vectors, as BEST-RQ has them: frozen weights that stand in no file."""

    def __init__(self, *, load_weights: bool = True):
        super().__init__()
        self.grid, self.transform = (2, 2), ImageTransform(size=(8, 8))
        self.codebook_sizes, self.code_width, self.fitted = [16], 48, True
        self.codebook = nn.Embedding(16, 48)

    def encode(self, pixels):
        patches = nn.functional.unfold(pixels, 4, stride=4).transpose(1, 2)
        return torch.cdist(patches, self.codebook.weight).argmin(-1, keepdim=True)

    def embed(self, codes):
        return self.codebook(codes)


@ENCODERS.register_module()
class NormedEncoder(Encoder):
    """With a batch norm, or a buffer of its own that every forward pass moves."""

    def __init__(self, *, norm: bool, load_weights: bool = True):
        super().__init__()
        self.width, self.grid, self.transform = 8, (2, 2), ImageTransform(size=(8, 8))
        self.conv = nn.Conv2d(3, 8, 4, stride=4)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, pixels):
        x = self.norm(self.conv(pixels))
        if self.training:
            self.mean.lerp_(x.detach().mean(), 0.1)
        return x.flatten(2).transpose(1, 2)


class PlainEncoder(nn.Module):
    """What an encoder must have, and nothing else: no `Component`."""

    width, grid, num_tokens, transform = 48, (2, 2), 4, ImageTransform(size=(8, 8))

    def __init__(self, *, load_weights: bool = True):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(48))

    def forward(self, pixels):
        return nn.functional.unfold(pixels, 4, stride=4).transpose(1, 2) * self.scale


ENCODERS.register_module(module=PlainEncoder)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return make_config(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory) -> Path:
    """The work dir of a finished run of two stages."""
    work_dir = tmp_path_factory.mktemp("trained") / "run"
    train(config, work_dir, NO_EVALUATION)
    return work_dir


def model_of(config: Path, options: dict, work_dir: Path):
    """The model of the last stage, and the cache that it reads."""
    from asvr.engine.stages import load_stage
    from asvr.registry import TEXT_TOKENIZERS

    cfg = load_config(config, options)
    recipe = Recipe(cfg)
    prepared = prepare.prepare(recipe, work_dir, TEXT_TOKENIZERS.build(cfg.text_tokenizer))
    return load_stage(recipe, recipe.last.name, prepared, work_dir), prepared.cache(recipe.last)


# What is built twice --------------------------------------------------------------------------------------


def pixels_of(transform, key: str) -> torch.Tensor:
    from asvr.data.images import open_image

    return transform(open_image(key), "square")[None]


def test_a_random_encoder_is_the_cached_one_in_all_stages(config, tmp_path):
    options = RANDOM_TOWER | NO_EVALUATION
    train(config, tmp_path, options)
    model, cache = model_of(config, options, tmp_path)
    keys = list(cache.rows)
    with torch.no_grad():
        own = model.encoder(torch.cat([pixels_of(model.encoder.transform, key) for key in keys]))
    assert torch.equal(own, cache.features(keys))


@pytest.mark.parametrize("cache", [True, "codes"])
def test_a_random_tokenizer_is_the_cached_one(config, tmp_path, cache):
    options = NO_EVALUATION | {
        "model.reconstruction": [
            dict(name="random", tokenizer=dict(type="RandomCodes"), head=dict(type="LinearHead"), shift=1)
        ],
        "data.cache": cache,
    }
    train(config, tmp_path / "cached", options)
    train(config, tmp_path / "online", options | {"data.cache": False})
    found, expected = ([line["loss"] for line in losses(tmp_path / name)] for name in ("cached", "online"))
    assert found == pytest.approx(expected, abs=1e-5)
    model, own = model_of(config, options, tmp_path / "cached")
    key = next(iter(own.rows if cache is True else own.hashes))
    pixels = pixels_of(model.tokenizers["random"].transform, key)
    assert torch.equal(model.tokenizers["random"].encode(pixels), own.truth("random", [key])["codes"].long())


def test_other_weights_than_the_cached_ones_are_refused(config, tmp_path, monkeypatch):
    real = ahead.ENCODERS.build
    monkeypatch.setattr(
        prepare, "encoder_ahead", lambda recipe, device: real(recipe.first.model.encoder).requires_grad_(False).eval()
    )
    torch.manual_seed(123)
    with pytest.raises(ValueError, match="the encoder of the model .* is not the one whose outputs data.cache holds"):
        train(config, tmp_path, RANDOM_TOWER | NO_EVALUATION | {"model.reconstruction": []})


def test_a_tokenizer_fitted_on_a_random_encoder_of_its_own_is_refused(config, tmp_path):
    own = dict(RANDOM_TOWER["model.encoder.arch"])
    options = {"model.reconstruction.0.tokenizer.encoder": dict(type="HFVisionEncoder", arch=own)}
    with pytest.raises(ValueError, match="'semantic': the encoder of its tokenizer has random weights"):
        train(config, tmp_path, options | NO_EVALUATION)


# Frozen weights of the stage before -----------------------------------------------------------------------


def other_llm(config: Path, folder: Path) -> Path:
    torch.manual_seed(1)
    sizes = {key: value for key, value in LLAMA.items() if key != "model_type"}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture
def replaceable(config, tmp_path) -> tuple[dict, Path]:
    """Options that name an LLM whose files may be replaced, and its folder."""
    llm = shutil.copytree(load_config(config).model.llm.name, tmp_path / "llm")
    return NO_EVALUATION | {"model.llm.name": str(llm)}, llm


def test_weights_that_a_stage_froze_are_those_that_the_next_one_trains(config, tmp_path, replaceable):
    options, llm = replaceable
    train(config, tmp_path / "run", options, only="pretrain")
    shutil.rmtree(llm)
    other_llm(config, llm)
    with pytest.raises(ValueError, match="made with other frozen weights of llm"):
        train(config, tmp_path / "run", options, only="finetune")


@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_the_same_weights_in_another_dtype_are_trained(config, tmp_path, replaceable, dtypes):
    models = {
        f"stages.{stage}.model": dict(llm=dict(dtype=dtypes[i])) for i, stage in enumerate(("pretrain", "finetune"))
    }
    options = replaceable[0] | models
    train(config, tmp_path / "run", options)
    assert read_metrics(tmp_path / "run")[-1]["stage"] == "finetune"


# A folder to start from -----------------------------------------------------------------------------------

STARTS = {
    "no heads": ([], ["projector"]),
    "frozen heads": (None, ["projector"]),
    "frozen projector": (None, ["heads"]),
    "only the LLM": ([], ["llm"]),
}


@pytest.mark.parametrize("kind", STARTS)
def test_a_folder_whose_parts_are_not_trained_is_started_from(trained, config, tmp_path, kind):
    reconstruction, parts = STARTS[kind]
    source = asvr.load(trained, device="cpu")
    if reconstruction is not None:  # as an imported LLaVA has none
        source.config["reconstruction"], source.model.targets = [], []
        source.model.heads, source.model.tokenizers = nn.ModuleDict(), nn.ModuleDict()
    source.save_pretrained(tmp_path / "folder")
    options = {"data.cache": False, "schedule.steps": 3}
    if reconstruction is not None:  # an image without text teaches nothing then
        options |= {"model.reconstruction": [], "data.on_error": "skip"}
    else:
        tokenizer = next((trained / "tokenizers").iterdir())
        options["model.reconstruction"] = [
            dict(
                name="semantic",
                tokenizer=dict(type="SemanticTokenizer", depth=2, codebook_size=4, name=str(tokenizer)),
                head=dict(type="DepthTransformerHead", width=8, layers=1, num_heads=2),
                weight=0.5,
                shift=1,
            )
        ]
    options["stages"] = dict(_delete_=True, only=dict(train=parts, init=str(tmp_path / "folder")))
    train(config, tmp_path / "run", options)
    train(config, tmp_path / "run", options | {"schedule.steps": 3})
    evaluate_run(
        load_config(config, options),
        tmp_path / "run",
        stage=None,
        questions=None,
        image_folder=Path(),
        limit=None,
        out=None,
    )
    saved = asvr.load(tmp_path / "run", device="cpu")
    for name, part in saved.model.components().items():
        if name not in parts:
            assert fingerprint_of(part) == fingerprint_of(source.model.components()[name]), name


def test_a_folder_without_targets_gets_new_heads_where_they_are_trained(trained, config, tmp_path):
    """As an imported LLaVA that is to learn a target."""
    source = asvr.load(trained, device="cpu")
    source.config["reconstruction"], source.model.targets = [], []
    source.model.heads, source.model.tokenizers = nn.ModuleDict(), nn.ModuleDict()
    source.save_pretrained(tmp_path / "folder")
    options = {"schedule.steps": 3, "data.cache": True}

    def stage(*parts: str) -> dict:
        return options | {"stages": dict(_delete_=True, only=dict(train=list(parts), init=str(tmp_path / "folder")))}

    train(config, tmp_path / "run", stage("heads", "projector"))
    assert "the heads of semantic are new" in (tmp_path / "run/train.log").read_text()
    own = asvr.load(tmp_path / "run", device="cpu")
    assert fingerprint_of(own.model.llm) == fingerprint_of(source.model.llm)
    with pytest.raises(ValueError, match="has no heads of semantic, and the stage does not train them"):
        train(config, tmp_path / "other", stage("projector"))


def test_a_start_with_other_token_ids_is_refused_before_training(trained, config, tmp_path):
    asvr.load(trained, device="cpu").save_pretrained(tmp_path / "folder")
    only = dict(train=["projector", "heads", "llm"], init=str(tmp_path / "folder"))
    options = NO_EVALUATION | {"stages": dict(_delete_=True, only=only), "text_tokenizer.special_tokens": ["<x>"]}
    with pytest.raises(ValueError) as error:
        train(config, tmp_path / "run", options)
    said = f"init={str(tmp_path / 'folder')!r}: text_tokenizer has other ids than this model's ("
    assert str(error.value).startswith(said) and "\n" not in str(error.value)
    assert "set text_tokenizer=dict(type='HFTokenizer', name=" in str(error.value) and not (tmp_path / "run").exists()


def test_an_encoder_that_is_a_plain_module_trains_goes_on_and_is_saved(config, tmp_path):
    options = NO_EVALUATION | {"model.encoder": dict(_delete_=True, type="PlainEncoder")}
    options |= {"model.reconstruction": [], "data.on_error": "skip"}
    train(config, tmp_path / "run", options)
    found = asvr.load(tmp_path / "run", device="cpu")
    found.save_pretrained(tmp_path / "folder")
    assert torch.equal(asvr.load(tmp_path / "folder", device="cpu").model.encoder.scale, found.model.encoder.scale)


# Going on with other settings -----------------------------------------------------------------------------


def stopped(config: Path, work_dir: Path, options: dict) -> None:
    """A run whose last stage has gone half its way."""
    train(config, work_dir, options)
    checkpoints = work_dir / "finetune/checkpoints"
    shutil.rmtree(newest(checkpoints))
    (work_dir / "finetune/done.json").unlink()


CHANGES = {
    "micro_batch": {"data.micro_batch": 3},
    "smaller micro_batch": {"data.micro_batch": 1},
    "pack": {"data.pack": True},
    "limits of a pack": {"data.pack": dict(max_tokens=70, max_images=2)},
    "group": {"data.group": "length"},
    "checkpointing": {"model.llm.activation_checkpointing": "full"},
    "kernel": {"runtime.attention": "sdpa"},
}


@pytest.fixture(scope="module")
def half(config, tmp_path_factory) -> Path:
    work_dir = tmp_path_factory.mktemp("half") / "run"
    stopped(config, work_dir, PLAIN)
    return work_dir


PLAIN = NO_EVALUATION | {"model.reconstruction.0.fit": dict(vectors_per_code=8, iterations=2)}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_run_goes_on_where_samples_and_objective_stay(half, trained, config, tmp_path, kind):
    work_dir = Path(shutil.copytree(half, tmp_path / "run"))
    train(config, work_dir, PLAIN | CHANGES[kind])
    assert f"goes on with {next(iter(CHANGES[kind]))}" in (work_dir / "train.log").read_text()
    expected, found = losses(trained), losses(work_dir)
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for own, other in zip(found, expected, strict=True):
        assert own["loss"] == pytest.approx(other["loss"], abs=2e-5)


@pytest.mark.parametrize("change", [{"data.global_batch": 12}, {"data.max_length": 60}, {"optim.lr": 1e-3}])
def test_a_run_does_not_go_on_where_they_do_not(half, config, tmp_path, change):
    work_dir = Path(shutil.copytree(half, tmp_path / "run"))
    with pytest.raises(ValueError, match="belongs to another configuration"):
        train(config, work_dir, PLAIN | change)


def moved(config: Path, folder: Path, *, changed: bool = False) -> dict:
    """Options that name the same data and weights at another place."""
    shutil.copytree(config.parent, folder)
    rows = folder / "rows.json"
    if changed:
        rows.write_text(rows.read_text().replace("word1", "word9"))
    return {
        "data.train.ann_file": str(rows),
        "text_tokenizer.corpus.ann_file": str(folder / "rows.json"),
        "model.llm.name": str(folder / "llm"),
        "model.encoder.name": str(folder / "tower"),
    }


def test_a_run_goes_on_with_data_and_weights_at_another_place(half, trained, config, tmp_path):
    work_dir = Path(shutil.copytree(half, tmp_path / "run"))
    train(config, work_dir, PLAIN | moved(config, tmp_path / "elsewhere"))
    assert [line["loss"] for line in losses(work_dir)] == pytest.approx([line["loss"] for line in losses(trained)])


def test_other_data_at_another_place_are_refused(half, config, tmp_path):
    work_dir = Path(shutil.copytree(half, tmp_path / "run"))
    options = moved(config, tmp_path / "elsewhere", changed=True)
    options["text_tokenizer.corpus.ann_file"] = load_config(config).text_tokenizer.corpus.ann_file
    with pytest.raises(ValueError, match="was trained on other data"):
        train(config, work_dir, PLAIN | options)


def test_weights_at_another_place_with_another_architecture_are_refused(half, config, tmp_path):
    """The LLM is trained, so that no fingerprint tells; its configuration does."""
    work_dir = Path(shutil.copytree(half, tmp_path / "run"))
    options = moved(config, tmp_path / "elsewhere")
    file = tmp_path / "elsewhere/llm/config.json"
    settings = json.loads(file.read_text())
    settings["rms_norm_eps"] = 1e-2
    file.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="was made with other settings of llm than in the files"):
        train(config, work_dir, PLAIN | options)


def test_an_older_checkpoint_goes_on(half, config, tmp_path):
    """Without what newer ones note besides."""
    work_dir = Path(shutil.copytree(half, tmp_path / "run"))
    for file in work_dir.glob("*/checkpoints/*/checkpoint.json"):
        meta = json.loads(file.read_text())
        del meta["architecture"]
        file.write_text(json.dumps(meta))
    train(config, work_dir, PLAIN | {"data.micro_batch": 3})
    assert read_metrics(work_dir)[-1]["step"] == 4


def test_an_older_checkpoint_does_not_go_on_with_another_hidden_state(config, tmp_path):
    """``tap=num_layers`` named the state behind the final norm once."""
    options = PLAIN | {"model.reconstruction.0.tap": LLAMA["num_hidden_layers"]}
    stopped(config, tmp_path / "run", options)
    for file in (tmp_path / "run").glob("*/checkpoints/*/checkpoint.json"):
        meta = json.loads(file.read_text())
        del meta["last_tap"]
        file.write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="which was tap=2 then and is tap=-1 now"):
        train(config, tmp_path / "run", options)


# One precision --------------------------------------------------------------------------------------------


def test_a_model_answers_in_the_precision_that_it_was_trained_in(config, tmp_path):
    train(config, tmp_path / "run", {"optim.precision": "bf16", "optim.lr": 2e-2} | NO_EVALUATION)
    found = asvr.load(tmp_path / "run", device="cpu")
    found.save_pretrained(tmp_path / "folder")
    asked = dict(stage=None, questions=config.parent / "questions.json", image_folder=config.parent, limit=None)
    results = [evaluate_folder(tmp_path / name, out=tmp_path / f"{name}.out", **asked) for name in ("run", "folder")]
    assert results[0]["losses"] == results[1]["losses"] and results[0]["codes"] == results[1]["codes"]
    assert (tmp_path / "run.out/answers.jsonl").read_text() == (tmp_path / "folder.out/answers.jsonl").read_text()

    folder, plain = (asvr.load(tmp_path / "folder", device="cpu", precision=p) for p in (None, "float32"))
    assert (found.precision, folder.precision, plain.precision) == ("bf16", "bf16", "float32")
    talk = [{"from": "human", "value": "what is 1?"}, {"from": "gpt", "value": "word1 word2"}]
    scores = [own.score([dict(messages=talk)])[0][0] for own in (found, folder, plain)]
    assert scores[0] == scores[1] != scores[2]


def test_a_folder_without_a_precision_computes_in_its_weights(trained, tmp_path):
    found = asvr.load(trained, device="cpu")
    found.save_pretrained(tmp_path / "folder")
    file = tmp_path / "folder/asvr.json"
    description = json.loads(file.read_text())
    assert description.pop("precision") == "float32"
    file.write_text(json.dumps(description))
    assert asvr.load(tmp_path / "folder", device="cpu").precision is None
    file.write_text(json.dumps(description | dict(precision="fp8")))
    with pytest.raises(ValueError, match="asvr.json: precision='fp8': expected one of 'float32', 'bf16'"):
        asvr.load(tmp_path / "folder", device="cpu")


# Several processes ----------------------------------------------------------------------------------------


def in_two(config: Path, folder: Path, options: dict) -> str:
    """What the first of two processes says that refuse."""
    once = {"schedule.steps": 2, "data.cache": False, "model.reconstruction": []} | NO_EVALUATION
    once["stages"] = dict(_delete_=True, all=dict(train=["encoder", "projector"]))
    run = dict(config=str(config), work_dir=str(folder / "run"), options=once | options)
    with pytest.raises(AssertionError) as failed:
        launch(folder, [run], 2)
    return str(failed.value)


@pytest.mark.parametrize("kind", ["DDP", "FSDP2"])
def test_trained_batch_norm_is_refused_in_several_processes(config, tmp_path, kind):
    options = {"parallel": dict(type=kind), "model.encoder": dict(_delete_=True, type="NormedEncoder", norm=True)}
    options["custom_imports"] = dict(imports=["tests.users.test_users_engine"])
    told = in_two(config, tmp_path, options)
    assert "encoder is trained, and its norm (BatchNorm2d) keeps running statistics" in told


def test_a_buffer_that_processes_do_not_share_is_refused(config, tmp_path):
    options = {"parallel": dict(type="DDP"), "model.encoder": dict(_delete_=True, type="NormedEncoder", norm=False)}
    options["custom_imports"] = dict(imports=["tests.users.test_users_engine"])
    assert "the buffer encoder.mean (1 in all) differs between processes" in in_two(config, tmp_path, options)
    assert not list((tmp_path / "run/all/checkpoints").glob("step_*"))


# Optimisers of one's own ----------------------------------------------------------------------------------


class ByteSGD(torch.optim.Optimizer):
    """Its momentum is kept in 8 bits and a scale, as 8-bit optimisers do."""

    def __init__(self, parameters):
        super().__init__(parameters, dict(lr=0.1))

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            momentum = parameter.grad
            if state:
                momentum = momentum + 0.9 * state["codes"].view(torch.int8).float() * state["scale"]
            scale = momentum.abs().max() / 127
            state["codes"], state["scale"] = (momentum / scale).round().to(torch.int8).view(torch.uint8), scale
            parameter -= 0.1 * momentum


def optimised(make, steps: range, model=None, state: dict | None = None):
    if model is None:
        torch.manual_seed(0)
        model = nn.Linear(64, 64)
    optimizer = make(model.parameters())
    if state is not None:
        load_whole_optimizer(state, optimizer)
    for i in steps:
        torch.manual_seed(i)
        model(torch.randn(4, 64)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def saved_state(folder: Path, optimizer) -> dict:
    checkpoint._write_whole(
        folder, dict(weights={}, tensors={}, state=copied(dict(optimizer=optimizer.state_dict()))), {}
    )
    return torch.load(folder / checkpoint.STATE, weights_only=True)["optimizer"]


def torchao_adamw():
    kind = pytest.importorskip("torchao.optim", reason="torchao is not installed").AdamW8bit
    return lambda parameters: kind(list(parameters), lr=1e-2, block_size=64)


@pytest.mark.parametrize("kind", ["bytes", "torchao"])
def test_states_in_8_bits_go_on_as_they_were(tmp_path, kind):
    make = ByteSGD if kind == "bytes" else torchao_adamw()
    whole, _ = optimised(make, range(6))
    model, optimizer = optimised(make, range(3))
    model, again = optimised(make, range(3, 6), model, saved_state(tmp_path / "step_1", optimizer))
    assert torch.equal(model.weight, whole.weight)


class Unknown(torch.Tensor):
    """A tensor of a class that nobody has told torch.load to trust."""


def test_a_state_that_could_not_be_read_back_is_refused_when_it_is_saved(tmp_path):
    _, optimizer = optimised(torch.optim.SGD, range(0))
    optimizer.state[optimizer.param_groups[0]["params"][0]]["moment"] = torch.zeros(3).as_subclass(Unknown)
    with pytest.raises(ValueError, match="holds .*Unknown, which could not be read back"):
        saved_state(tmp_path / "step_1", optimizer)
    assert not list(tmp_path.iterdir())


# Configs with a mistake -----------------------------------------------------------------------------------

MISTAKES = {
    "a dict over a text": (
        "_base_ = 'base.py'\nmodel = dict(encoder=dict(type='A'))",
        "config.py: model.encoder is a dict here, but 'x' in its _base_",
    ),
    "a dict over a text, in a base": ("_base_ = 'child.py'", "child.py: model.encoder is a dict here"),
    "syntax": ("a = 1\nb = (", r"config.py, line 2: '\(' was never closed"),
    "syntax, in a base": ("_base_ = ['broken.py']", "broken.py, line 1: "),
    "no base": ("_base_ = 'nowhere.py'", "config.py: its _base_ names .*nowhere.py, and there is no such file"),
    "a circle": ("_base_ = 'config.py'", "config.py: its _base_ leads back to "),
    "a name": ("a = 1\n\nb = undefined", "config.py, line 3: NameError: name 'undefined' is not defined"),
    "a name, in a base": ("_base_ = 'unnamed.py'", "unnamed.py, line 2: NameError"),
    "twice": ("_base_ = ['base.py', 'base2.py']", "config.py: KeyError: Duplicate key is not allowed .*'model'"),
    "an import": ("import no_such_module", "config.py: ModuleNotFoundError"),
    "no text": ("a = '\xff'", "config.py is not a Python file: 'utf-8' codec"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_in_a_config_is_told_in_one_line(tmp_path, kind):
    text, expected = MISTAKES[kind]
    files = {
        "base.py": "model = dict(encoder='x')",
        "base2.py": "model = dict(encoder='y')",
        "child.py": "_base_ = 'base.py'\nmodel = dict(encoder=dict(type='A'))",
        "broken.py": "a = )",
        "unnamed.py": "a = 1\nb = undefined",
        "config.py": text,
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content.encode("latin1"))
    with pytest.raises(ValueError, match=expected) as told:
        load_config(tmp_path / "config.py")
    assert "\n" not in str(told.value)
