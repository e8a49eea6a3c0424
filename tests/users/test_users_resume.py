"""What users met who moved their data: a run goes on with the same images at another place, and with no others."""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
from parallel_helpers import losses, make_config, train
from PIL import Image

from asvr.data import image_digest as digests
from asvr.data.image_digest import image_digest
from asvr.data.image_folder import ImageFolder
from asvr.data.llava import LlavaDataset
from asvr.data.mixture import Mixture
from asvr.data.parquet import ParquetDataset
from asvr.data.records import ConversationDataset
from asvr.engine import stages
from asvr.engine.checkpoint import newest
from asvr.engine.prepare import _fit_digest
from asvr.models.compiling import compile_blocks
from asvr.recipe.config import load_config
from asvr.recipe.images import images_of_stages
from asvr.recipe.recipe import Recipe

PLAIN = dict(evaluation=None)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """The images lie in a folder of their own, the records in two places that do not move."""
    config = make_config(tmp_path_factory.mktemp("data"))
    images = config.parent / "images"
    images.mkdir()
    for file in config.parent.glob("*.png"):
        file.rename(images / file.name)
    return config


def llava(config: Path, images: Path) -> dict:
    return dict(_delete_=True, type="LlavaDataset", ann_file=str(config.parent / "rows.json"), image_folder=str(images))


def mixture(config: Path, images: Path) -> dict:
    sources = [
        dict(dataset={k: v for k, v in llava(config, images).items() if k != "_delete_"}, weight=2, name="rows"),
        dict(dataset=dict(type="ImageFolder", root=str(images)), weight=1, name="images"),
    ]
    return dict(_delete_=True, type="Mixture", sources=sources)


def folder(config: Path, images: Path) -> dict:
    return dict(_delete_=True, type="ImageFolder", root=str(images))


KINDS = dict(llava=llava, mixture=mixture, folder=folder)


@pytest.fixture(scope="module", params=KINDS)
def run_of(request, config, tmp_path_factory) -> tuple:
    """The kind of data, a finished run, and the same one stopped half way through its last stage."""
    kind, folder = KINDS[request.param], tmp_path_factory.mktemp(request.param)
    options = PLAIN | {"data.train": kind(config, config.parent / "images")}
    train(config, folder / "whole", options)
    shutil.copytree(folder / "whole", folder / "half")
    stop(folder / "half")
    return kind, folder / "whole", folder / "half"


def stop(work_dir: Path) -> None:
    shutil.rmtree(newest(work_dir / "finetune/checkpoints"))
    (work_dir / "finetune/done.json").unlink()


def goes_on(config: Path, work_dir: Path, data: dict, **kwargs) -> list[float]:
    train(config, work_dir, PLAIN | {"data.train": data}, **kwargs)
    return [line["loss"] for line in losses(work_dir)]


def told(work_dir: Path) -> list[str]:
    return [line for line in (work_dir / "train.log").read_text().splitlines() if "goes on with" in line]


def test_the_same_images_at_another_place_go_on(run_of, config, tmp_path):
    kind, whole, half = run_of
    shutil.copytree(half, tmp_path / "run")
    shutil.copytree(config.parent / "images", tmp_path / "images")
    found = goes_on(config, tmp_path / "run", kind(config, tmp_path / "images"))
    assert found == [line["loss"] for line in losses(whole)]
    lines = told(tmp_path / "run")
    assert len(lines) == (2 if kind is mixture else 1)
    assert (tmp_path / "run/train.log").read_text().count("fitting the tokenizer") == 1  # a second one is not the same
    for line in lines:
        assert f"'{tmp_path / 'images'}' (was '{config.parent / 'images'}'): the records are the same" in line


def test_a_tokenizer_that_an_earlier_version_fitted_is_used(run_of, config, tmp_path):
    """Its folder was named by where the images lie."""
    kind, _, half = run_of
    shutil.copytree(half, tmp_path / "run")
    data = kind(config, config.parent / "images")
    cfg = load_config(config, PLAIN | {"data.train": data})
    target, (cache,) = (
        cfg.model.reconstruction[0],
        (path for path in (tmp_path / "run/cache").iterdir() if path.is_dir()),
    )
    keys, _ = images_of_stages(Recipe(cfg))
    (own,) = (tmp_path / "run/tokenizers").iterdir()
    own.rename(own.with_name(f"semantic-{_fit_digest(target, cache.name, keys, 0)}"))
    goes_on(config, tmp_path / "run", data)
    assert [path.name for path in own.parent.iterdir()] != [own.name] and not own.exists()


def other_content(images: Path) -> None:
    """As many bytes as before, and one of them another."""
    content = bytearray((images / "3.png").read_bytes())
    content[-20] ^= 1
    (images / "3.png").write_bytes(content)


def other_size(images: Path) -> None:
    with open(images / "3.png", "ab") as file:
        file.write(b"more")


def incomplete(images: Path) -> None:
    (images / "3.png").write_bytes(b"")


OTHERS = dict(content=other_content, size=other_size, incomplete=incomplete)


@pytest.mark.parametrize("how", OTHERS)
def test_other_images_at_another_place_are_refused(run_of, config, tmp_path, how):
    kind, _, half = run_of
    shutil.copytree(half, tmp_path / "run")
    shutil.copytree(config.parent / "images", tmp_path / "images")
    OTHERS[how](tmp_path / "images")
    with pytest.raises(ValueError, match="was trained on other images than those at the place") as error:
        # So that no image is refused before.
        train(
            config, tmp_path / "run", PLAIN | {"data.train": kind(config, tmp_path / "images"), "data.on_error": "skip"}
        )
    assert "\n" not in str(error.value) and len(str(error.value).split()) < 60
    assert ("3.png cannot be read: it is empty" in str(error.value)) == (how == "incomplete")


def test_an_older_checkpoint_is_refused_with_images_at_another_place(run_of, config, tmp_path):
    kind, _, half = run_of
    shutil.copytree(half, tmp_path / "run")
    forget_images(tmp_path / "run")
    shutil.copytree(config.parent / "images", tmp_path / "images")
    with pytest.raises(
        ValueError, match=r"belongs to another configuration \(data.train.*(image_folder|root): "
    ) as error:
        goes_on(config, tmp_path / "run", kind(config, tmp_path / "images"))
    assert "\n" not in str(error.value)
    goes_on(config, tmp_path / "run", kind(config, config.parent / "images"))


def forget_images(work_dir: Path) -> None:
    for file in work_dir.glob("*/checkpoints/*/checkpoint.json"):
        meta = json.loads(file.read_text())
        assert meta.pop("images")
        file.write_text(json.dumps(meta))


def rows_only(config: Path, folder: Path) -> dict:
    """Of data whose images lie beside the records, which name no folder."""
    return dict(_delete_=True, type="LlavaDataset", ann_file=str(folder / "rows.json"))


@pytest.fixture(scope="module")
def beside(config, tmp_path_factory) -> Path:
    """A run, stopped half way, whose images lie beside the records."""
    root = tmp_path_factory.mktemp("beside")
    data = shutil.copytree(config.parent / "images", root / "data")
    shutil.copy(config.parent / "rows.json", data)
    goes_on(config, root / "run", rows_only(config, data))
    return root


def test_images_that_moved_with_their_records_are_compared(beside, config, tmp_path):
    work_dir = shutil.copytree(beside / "run", tmp_path / "run")
    stop(work_dir)
    data = shutil.copytree(beside / "data", tmp_path / "data")
    other_content(data)
    with pytest.raises(ValueError, match="was trained on other images"):
        goes_on(config, work_dir, rows_only(config, data))


def test_an_older_checkpoint_with_moved_records_goes_on_with_a_warning(beside, config, tmp_path):
    work_dir = shutil.copytree(beside / "run", tmp_path / "run")
    stop(work_dir)
    forget_images(work_dir)
    goes_on(config, work_dir, rows_only(config, shutil.copytree(beside / "data", tmp_path / "data")))
    assert "does not say which images it was trained on" in (work_dir / "train.log").read_text()


def test_a_stage_does_not_start_from_one_that_was_trained_on_other_data(beside, config, tmp_path):
    """Of a moved file, only its place is another in the configuration."""
    work_dir = shutil.copytree(beside / "run", tmp_path / "run")
    shutil.rmtree(work_dir / "finetune")
    data = shutil.copytree(beside / "data", tmp_path / "data")
    rows = data / "rows.json"
    rows.write_text(rows.read_text().replace("word1", "word9"))
    with pytest.raises(ValueError, match="pretrain.* was trained on other data"):
        goes_on(config, work_dir, rows_only(config, data), only="finetune")


@pytest.mark.parametrize("run_of", ["mixture"], indirect=True)
def test_what_else_changes_in_a_part_of_a_mixture_is_refused_by_its_own_name(run_of, config, tmp_path):
    _, _, half = run_of
    shutil.copytree(half, tmp_path / "run")
    shutil.copytree(config.parent / "images", tmp_path / "images")
    data = mixture(config, tmp_path / "images")
    data["sources"][1]["weight"] = 3
    with pytest.raises(ValueError, match=r"configuration \(data.train.sources.1.weight: 1 in the checkpoint, 3 now\)"):
        goes_on(config, tmp_path / "run", data)


# Another cache, and compiled blocks -----------------------------------------------------------------------


def fitted(work_dir: Path) -> dict:
    """The target of the run, with its tokenizer named by its folder."""
    name = str(next((work_dir / "tokenizers").iterdir()))
    tokenizer = dict(type="SemanticTokenizer", name=name, depth=2, codebook_size=4)
    head = dict(type="DepthTransformerHead", width=8, layers=1, num_heads=2)
    return {"model.reconstruction": [dict(name="semantic", tokenizer=tokenizer, head=head, weight=0.5, shift=1)]}


@pytest.fixture(scope="module")
def named(beside, config, tmp_path_factory) -> tuple:
    root = tmp_path_factory.mktemp("named")
    options = PLAIN | {"data.train": rows_only(config, beside / "data")} | fitted(beside / "run")
    train(config, root / "whole", options)
    shutil.copytree(root / "whole", root / "half")
    stop(root / "half")
    return options, root / "whole", root / "half"


@pytest.mark.parametrize("change", [{"data.cache": False}, {"data.cache": "codes"}, {"runtime.compile": True}], ids=str)
def test_another_cache_or_compiled_blocks_go_on(named, config, tmp_path, monkeypatch, change):
    monkeypatch.setattr(stages, "compile_blocks", partial(compile_blocks, backend="eager"))  # inductor takes minutes
    options, whole, half = named
    shutil.copytree(half, tmp_path / "run")
    train(config, tmp_path / "run", options | change)
    found, expected = ([line["loss"] for line in losses(folder)] for folder in (tmp_path / "run", whole))
    assert found == pytest.approx(expected, abs=2e-5)
    ((key, value),) = change.items()
    assert any(f"goes on with {key}={value!r}" in line for line in told(tmp_path / "run"))


def test_no_cache_where_a_tokenizer_is_fitted_is_refused_in_one_line(beside, config, tmp_path):
    work_dir = shutil.copytree(beside / "run", tmp_path / "run")
    stop(work_dir)
    data = rows_only(config, beside / "data")
    with pytest.raises(ValueError, match="^[^\n]*has `fit`, which needs data.cache=True$"):
        train(config, work_dir, PLAIN | {"data.train": data, "data.cache": False})


# The digest -----------------------------------------------------------------------------------------------


class Many(ConversationDataset):
    """More records than anybody has, of several images each."""

    source = "many"

    def __init__(self, folder: Path, length: int):
        super().__init__()
        self.folder, self.length, self.read, self.asked = folder, length, 0, 0

    def __len__(self) -> int:
        return self.length

    def record(self, i: int) -> dict:
        self.read += 1
        return dict(image=[f"{i}-{n}.png" for n in range(i % 5)])

    def image(self, name: str):
        self.asked += 1
        return name, self.folder / name


@pytest.mark.parametrize("length", [1, 50_000_000])
def test_the_digest_looks_at_few_records_and_images(tmp_path, monkeypatch, length):
    opened = []
    monkeypatch.setattr(digests, "check_file", lambda path: opened.append(path) or os.stat(__file__))
    (data := Many(tmp_path, length)).length = length
    image_digest(data)
    assert data.read <= min(length, digests.RECORDS)
    assert data.asked <= digests.IMAGES + 5 and len(opened) <= digests.IMAGES


def test_records_without_images_have_a_digest_that_no_folder_changes(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([dict(conversations=[])]))
    first, second = (
        LlavaDataset(ann_file=str(tmp_path / "rows.json"), image_folder=str(tmp_path / name)) for name in "ab"
    )
    assert image_digest(first) == image_digest(second) is not None


def test_what_is_no_file_at_both_places_is_the_same(tmp_path):
    """A message of a missing image names its path; that it is missing is all that counts."""
    (tmp_path / "rows.json").write_text(json.dumps([dict(image="no.png"), dict(image="../out.png"), 3]))
    first, second = (
        LlavaDataset(ann_file=str(tmp_path / "rows.json"), image_folder=str(tmp_path / name)) for name in "ab"
    )
    assert image_digest(first) == image_digest(second)
    (tmp_path / "b").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "b" / "no.png")
    assert image_digest(first) != image_digest(second)


def test_every_part_of_a_mixture_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "IMAGES", 3)
    for name in ("one", "two", "same"):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.new("RGB", (2, 2), (i, 0, 100 if name == "two" else 0)).save(tmp_path / name / f"{i}.png")

    def of(*names: str) -> str:
        return image_digest(
            Mixture(
                sources=[
                    dict(dataset=dict(type="ImageFolder", root=str(tmp_path / name)), name=str(i))
                    for i, name in enumerate(names)
                ]
            )
        )

    assert of("one", "one") == of("one", "same") != of("one", "two")


class InMemory(Many):
    def image(self, name: str):
        return name, Image.new("RGB", (2, 2))


class OwnItems(ConversationDataset):
    """Makes its items itself."""

    source = "own"

    def __len__(self) -> int:
        return 3


def test_a_dataset_whose_images_are_unknown_has_none(tmp_path):
    for dataset in (InMemory(tmp_path, 20), OwnItems(), [1, 2]):
        assert image_digest(dataset) is None
    assert image_digest(ImageFolder(root=_one_image(tmp_path))) is not None


def _one_image(folder: Path) -> str:
    Image.new("RGB", (2, 2)).save(folder / "a.png")
    return str(folder)


@pytest.mark.parametrize("kind", ["paths", "structs"])
def test_images_that_a_parquet_file_names_are_compared(tmp_path, monkeypatch, kind):
    """Those whose bytes stand in it too, but for them its own fingerprint vouches."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    for name in ("same", "other"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (2, 2), (i, 0, 0)).save(tmp_path / name / f"{i}.png")
    shutil.copytree(tmp_path / "same", tmp_path / "moved")
    Image.new("RGB", (2, 2), (9, 0, 0)).save(tmp_path / "other" / "1.png")
    paths = [f"{i}.png" for i in range(3)]
    stored = [dict(bytes=None if i else b"first", path=path) for i, path in enumerate(paths)]
    columns = dict(image=paths if kind == "paths" else stored, question=["q"] * 3, answer=["a"] * 3)
    datasets.Dataset.from_dict(columns).to_parquet(str(tmp_path / "rows.parquet"))
    same, moved, other = (
        image_digest(ParquetDataset(files=str(tmp_path / "rows.parquet"), image_folder=str(tmp_path / name)))
        for name in ("same", "moved", "other")
    )
    assert same == moved != other
