"""A model goes to the Hub and comes back as it was. The Hub is a stand-in on localhost, the client is the real one."""

import json
import shutil
import socket
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest
import torch
from data_helpers import byte_level
from hub_server import TOKEN, serving
from huggingface_hub import ModelCard, constants
from PIL import Image
from run_helpers import ROOT, TINY, call_tool, tiny_env
from test_export import tiny

import asvr
from asvr.base.files import sha256_of
from asvr.base.hub_model import find_model, hub_name, local_model
from asvr.benchmarks.questions import evaluate_folder
from asvr.engine.finished import require_start, start_digest
from asvr.recipe.config import load_config
from asvr.recipe.model_file import read_description
from asvr.recipe.preflight import wanted_starts
from asvr.recipe.recipe import Recipe
from asvr.recipe.validate import check_config
from asvr.sharing.card import License
from asvr.sharing.push import push_folder

QUESTION = "what color is the house?"


@pytest.fixture(scope="module")
def model():
    return tiny("siglip_vision_model", "llama", "vicuna_v1", byte_level)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """In several shards."""
    return model.save_pretrained(tmp_path_factory.mktemp("saved") / "model", max_shard_size=60_000)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The stand-in, for a client that is logged in and has an empty cache."""
    with serving() as server:
        at(monkeypatch, server.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        for name in ("ASVR_MODEL_ZOO", "ASVR_DOWNLOAD", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between retries
        monkeypatch.chdir(tmp_path)
        _stay_here(monkeypatch)
        yield server


def at(monkeypatch, endpoint: str) -> None:
    """The Hub's address, which ``HF_ENDPOINT`` gives before huggingface_hub is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")


def _stay_here(monkeypatch) -> None:
    connect = socket.socket.connect

    def only_localhost(self, address):
        assert address[0] in ("127.0.0.1", "localhost"), address
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", only_localhost)


def logits(pretrained) -> torch.Tensor:
    image = Image.linear_gradient("L").convert("RGB")
    batch = pretrained.batch([dict(images=[image], messages=[{"from": "human", "value": QUESTION}])])
    with torch.no_grad():
        embeds, _ = pretrained.model.embed(batch)
        return pretrained.model.llm.lm_head(pretrained.model.hidden(batch, embeds, {-1})[-1])


def same(one, other) -> bool:
    return torch.equal(logits(one), logits(other))


def test_a_model_comes_back_bit_for_bit(hub, model, saved):
    assert len(list(saved.glob("*.safetensors"))) > 2
    info = push_folder(saved, "org/sharded", commit_message="first")
    assert info.commit_url.startswith(f"{hub.endpoint}/org/sharded/commit/") and hub.repos["org/sharded"].messages == [
        "first"
    ]
    loaded = asvr.load("org/sharded", device="cpu")
    assert same(loaded, model) and loaded.text_tokenizer.fingerprint() == model.text_tokenizer.fingerprint()
    assert loaded.chat(None, QUESTION, max_new_tokens=4) == model.chat(None, QUESTION, max_new_tokens=4)
    # In one file, to the same place: the shards must not stay beside it.
    assert model.push_to_hub("org/sharded").oid == hub.repos["org/sharded"].refs["main"]
    files = hub.repos["org/sharded"].commits[hub.repos["org/sharded"].refs["main"]]
    assert [name for name in files if name.endswith(".safetensors")] == ["model.safetensors"]
    assert same(asvr.load("org/sharded", device="cpu"), model)


def test_every_request_is_for_data_alone(hub, saved):
    push_folder(saved, "org/data")
    repo = hub.repos["org/data"]
    files = repo.commits[repo.refs["main"]] | {
        "evil.py": b"raise SystemExit",
        "model.bin": b"x",
        "text_tokenizer/a.py": b"x",
    }
    repo.commit("main", files, "code beside it")
    folder = find_model("org/data")
    asked = [line for line in hub.requests if "/resolve/" in line]
    assert asked and not [line for line in asked if line.endswith((".py", ".bin"))]
    assert not list(folder.rglob("*.py"))


def test_revisions_are_branches_tags_and_commits(hub, model, saved):
    first = push_folder(saved, "org/versions").oid
    other = tiny("clip_vision_model", "llama", "vicuna_v1", byte_level)
    other.push_to_hub("org/versions", revision="next")
    other.push_to_hub("org/versions", revision="next")  # a branch that is there
    assert same(asvr.load("org/versions", device="cpu"), model)
    assert same(asvr.load("org/versions", revision="next", device="cpu"), other)
    assert same(asvr.load("org/versions@next", device="cpu"), other)
    assert same(asvr.load(f"org/versions@{first}", device="cpu"), model)
    for name, more, message in (
        ("org/versions@none", {}, "org/versions: the Hub's model has no revision 'none'"),
        ("org/versions@next", dict(revision="main"), "already has a revision"),
        (saved, dict(revision="main"), "this is a path: leave it out"),
    ):
        with pytest.raises(ValueError, match=message):
            asvr.load(name, **more)
    with pytest.raises(ValueError, match="leave revision='next' out"):
        push_folder(saved, "org/versions", create_pr=True, revision="next")
    assert push_folder(saved, "org/versions", create_pr=True, overwrite_card=True).pr_url.endswith("/discussions/1")


def test_a_private_model_needs_a_token(hub, model, saved, monkeypatch):
    model.push_to_hub("org/private", private=True)
    assert hub.repos["org/private"].private
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(
        ValueError,
        match="org/private: there is no such folder here and no such model on the Hub, or it is private: log in",
    ):
        asvr.load("org/private")
    assert same(asvr.load("org/private", token=TOKEN, device="cpu"), model)
    for repo in ("org/private", "org/new"):
        with pytest.raises(ValueError, match=f"{repo}: the Hub .*log in"):
            push_folder(saved, repo)
    assert "org/new" not in hub.repos


def test_without_a_network_the_cache_is_read(hub, model, saved, monkeypatch):
    push_folder(saved, "org/cached")
    with pytest.raises(
        ValueError, match=r"org/cached: .* in the Hub's cache, and the Hub is not asked: run `hf download org/cached`"
    ):
        find_model("org/cached", download=False)
    folder = find_model("org/cached")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert find_model("org/cached") == local_model("org/cached") == folder
    assert same(asvr.load("org/cached", device="cpu"), model)
    for name in ("org/other", "org/cached@next"):
        with pytest.raises(ValueError, match=f"^{name}: .*HF_HUB_OFFLINE is set.*hf download org/"):
            asvr.load(name)
    with pytest.raises(ValueError, match="org/cached: nothing is uploaded, since HF_HUB_OFFLINE is set: unset it"):
        push_folder(saved, "org/cached")
    assert hub.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    at(monkeypatch, "http://127.0.0.1:9")  # nobody listens
    assert find_model("org/cached") == folder
    with pytest.raises(ValueError, match="org/other: .*the Hub cannot be reached"):
        asvr.load("org/other")
    with pytest.raises(ValueError, match="org/cached: the Hub cannot be reached"):
        push_folder(saved, "org/cached")
    assert find_model("org/cached", cache_dir=None, download=False) == folder
    with pytest.raises(ValueError, match="no such folder"):
        find_model("org/cached", cache_dir=folder.parent / "empty", download=False)


def test_folders_come_first_and_a_wrong_path_is_no_question_to_the_hub(hub, saved, tmp_path, monkeypatch):
    (tmp_path / "org").mkdir()
    with pytest.raises(
        ValueError, match=r"org/typo: .*the Hub is not asked \(org is a folder here\): run `hf download org/typo`"
    ):
        asvr.load("org/typo")
    (tmp_path / "org" / "model").symlink_to(saved)
    assert find_model("org/model").resolve() == saved.resolve() and local_model("org/model") is not None
    (tmp_path / "zoo" / "team").mkdir(parents=True)
    (tmp_path / "zoo" / "team" / "model").symlink_to(saved)
    monkeypatch.setenv("ASVR_MODEL_ZOO", str(tmp_path / "zoo"))
    assert find_model("team/model") == local_model("team/model") == tmp_path / "zoo" / "team" / "model"
    assert hub.requests == []
    assert [hub_name(name) for name in ("a/b@c/d", "a/b/c", "/a/b", "./a", "a", "asvr/codes")] == [
        ("a/b", "c/d"),
        *[None] * 5,
    ]


@pytest.mark.parametrize("name", ["runs/a--b", "org/name.", "org/.."])
def test_what_cannot_be_a_name_of_the_hub_is_told_in_one_line(name):
    assert local_model(name) is None
    with pytest.raises(ValueError, match="is not the name of a model on the Hub: expected org/name") as error:
        find_model(name)
    assert "\n" not in str(error.value)


def test_a_model_of_others_and_one_with_code_are_told_before_their_weights_come(hub, model, saved):
    push_folder(saved, "org/code")
    repo = hub.repos["org/code"]
    files = dict(repo.commits[repo.refs["main"]])
    description = json.loads(files["asvr.json"]) | dict(custom_imports=dict(imports=["no_module_of_this_name"]))
    repo.commit("main", files | {"asvr.json": json.dumps(description).encode()}, "needs code")
    repo.commit("llava", {"config.json": b"{}", "model.safetensors": b"x"}, "of others")
    hub.requests.clear()
    with pytest.raises(ValueError, match="no_module_of_this_name.*trust_custom_imports=True"):
        asvr.load("org/code")
    with pytest.raises(ValueError, match="org/code@llava is not a model of this library, it has no asvr.json"):
        asvr.load("org/code@llava")
    assert not [line for line in hub.requests if "safetensors" in line]
    damaged = {name: content for name, content in files.items() if name != "model.safetensors.index.json"}
    first = next(name for name in files if name.startswith("model-00001"))
    repo.commit("damaged", damaged | {first: files[first][:-1] + b"\0"}, "damaged")
    with pytest.raises(ValueError, match=f"{first}: missing or damaged .its SHA-256"):
        asvr.load("org/code@damaged")


def test_a_stage_starts_from_a_model_of_the_hub(hub, saved, monkeypatch):
    push_folder(saved, "org/start")
    with chdir(ROOT):
        cfg = load_config("configs/asvr_mini.py", TINY | {"stages.finetune.init": "org/start@main"})
    check_config(cfg)
    stages = Recipe(cfg).only("finetune").stages
    (wanted,) = wanted_starts(stages)
    assert "stages.finetune.init: org/start@main" in wanted.describe()
    assert "hf download org/start --revision main" in wanted.describe() and local_model("org/start@main") is None
    monkeypatch.setenv("ASVR_DOWNLOAD", "1")
    assert wanted_starts(stages) == []
    assert read_description(local_model("org/start@main")) == read_description(saved)
    cfg.stages.finetune.init = "org/none"
    with pytest.raises(ValueError, match="org/none: there is no such folder here and no such model on the Hub"):
        wanted_starts(Recipe(cfg).only("finetune").stages)
    cfg.stages.finetune.init = "pretrian"
    with pytest.raises(ValueError, match="or a model's name on the Hub; did you mean 'pretrain'"):
        check_config(cfg)


def test_a_run_knows_the_start_on_the_hub_by_its_files(hub, saved, tmp_path):
    push_folder(saved, "org/start")
    with chdir(ROOT):
        cfg = load_config("configs/asvr_mini.py", TINY | {"stages.finetune.init": "org/start"})
    recipe = Recipe(cfg)
    find_model("org/start")
    assert start_digest(recipe, "finetune", tmp_path) == sha256_of(saved / "asvr.json")
    require_start(recipe, "finetune", tmp_path)


def test_results_of_a_model_of_the_hub_go_to_a_work_dir(hub, model, saved, tmp_path):
    push_folder(saved, "org/asked")
    Image.new("RGB", (30, 20), "teal").save(tmp_path / "image.png")
    turns = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": "red"}]
    (tmp_path / "q.json").write_text(json.dumps([dict(id="1", image="image.png", conversations=turns)]))
    asked = dict(questions=tmp_path / "q.json", image_folder=tmp_path, stage=None, limit=None, out=None)
    by_name, by_folder = (evaluate_folder(Path(name), **asked) for name in ("org/asked", saved))
    assert by_name["losses"] == by_folder["losses"] and by_name["total"] == 1
    assert (tmp_path / "work_dirs/org/asked/evaluation/q/result.json").is_file()
    shutil.rmtree(saved / "evaluation")


def test_a_card_that_a_person_wrote_is_kept(hub, model, saved, tmp_path, caplog):
    def on_hub() -> str:
        repo = hub.repos["org/card"]
        return repo.commits[repo.refs["main"]]["README.md"].decode()

    model.push_to_hub("org/card", license="apache-2.0")
    assert ModelCard(on_hub()).data.license == "apache-2.0" and 'asvr.load("org/card")' in on_hub()
    model.push_to_hub("org/card", license="mit")
    assert ModelCard(on_hub()).data.license == "mit"
    own = on_hub().replace("# card", "# My model")
    repo = hub.repos["org/card"]
    repo.commit("main", repo.commits[repo.refs["main"]] | {"README.md": own.encode()}, "by hand")
    with caplog.at_level("WARNING", logger="asvr"):
        model.push_to_hub("org/card")
    assert on_hub() == own and "written by hand and is kept" in caplog.text
    model.push_to_hub("org/card", overwrite_card=True)
    assert "# My model" not in on_hub()
    with pytest.raises(ValueError, match='org/card: the Hub does not take this: .*"license" must be one of'):
        model.push_to_hub("org/card", license="no-such-licence")


def test_results_and_hidden_files_stay_here(hub, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "copy")
    for name in ("evaluation/questions/answers.jsonl", "benchmarks/results.json", ".secret", "LICENSE", "README.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("---\nlicense: mit\n---\n# Mine\n" if name == "README.md" else "private")
    push_folder(folder, "org/clean")
    repo = hub.repos["org/clean"]
    files = repo.commits[repo.refs["main"]]
    assert set(files) - {str(f.relative_to(saved)) for f in saved.rglob("*")} == {".gitattributes", "LICENSE"}
    assert files["README.md"].decode().endswith("# Mine\n") and (folder / "README.md").read_text().endswith("# Mine\n")
    with pytest.raises(ValueError, match="neither a saved model"):
        push_folder(folder / "text_tokenizer", "org/clean")
    with pytest.raises(ValueError, match="states license 'mit', and license='apache-2.0' was given"):
        push_folder(folder, "org/terms", terms=License(license="apache-2.0"))
    assert "org/terms" not in hub.repos
    for name in ("org/a/b", "org/name@main", "/name"):
        with pytest.raises(ValueError, match="is not the name of a model on the Hub: expected org/name"):
            push_folder(saved, name)


def test_the_commands_take_a_name_of_the_hub(hub, model, saved, tmp_path):
    done = call_tool(
        ROOT / "asvr/commands/push.py", saved, "org/command", "--license", "other", "--license-name", "mine"
    )
    assert done.returncode == 0 and done.stdout.startswith(f"{hub.endpoint}/org/command/commit/"), done.stderr
    repo = hub.repos["org/command"]
    assert ModelCard(repo.commits[repo.refs["main"]]["README.md"].decode()).data.license_name == "mine"
    refused = call_tool(ROOT / "asvr/commands/push.py", saved, "org/command", "--stage", "finetune")
    assert "--stage can only be used with a run's work dir" in refused.stderr
    refused = call_tool(ROOT / "asvr/commands/push.py", "org/command", "org/copy")
    assert "org/command: there is no such folder" in refused.stderr and "org/copy" not in hub.repos
    out = tmp_path / "exported"
    done = call_tool(ROOT / "tools/convert.py", "export", "org/command", out, "--format", "llava")
    assert done.returncode == 0 and (out / "config.json").is_file(), done.stderr


def test_a_client_of_its_own_process_reads_the_address_from_its_environment(hub, saved, tmp_path):
    """``HF_ENDPOINT`` is read when huggingface_hub is imported. What is downloaded are the files that were uploaded."""
    code = (
        "import asvr, sys\nfrom asvr.base.hub_model import find_model\nfrom asvr.sharing.push import push_folder\n"
        f"push_folder({str(saved)!r}, 'org/process')\nprint(find_model('org/process'))\n"
        "assert 'torch' not in sys.modules"
    )
    env = tiny_env() | dict(HF_ENDPOINT=hub.endpoint, HF_TOKEN=TOKEN, HF_HUB_DISABLE_XET="1", HF_HOME=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", code], env=env | dict(PYTHONPATH=str(ROOT)), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.splitlines()[-1])
    assert folder.is_relative_to(tmp_path)
    names = [str(file.relative_to(saved)) for file in saved.rglob("*") if file.is_file() and file.name != "README.md"]
    assert all((folder / name).read_bytes() == (saved / name).read_bytes() for name in names)
