"""Webdataset's shards: the same items as from a JSON file and a folder, read in any order."""

import base64
import gzip
import io
import json
import tarfile

import pytest
from data_helpers import FixedTokens, byte_level
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from asvr.caches.codes import hash_images
from asvr.data import file_index
from asvr.data.collate import Collate
from asvr.data.images import open_image
from asvr.data.refusals import Refusal, Refused
from asvr.data.tar import TarDataset, scan_tar
from asvr.data.transforms import ImageTransform
from asvr.registry import DATASETS

ITEM = dict(tokenizer=byte_level(), template="vicuna_v1", max_length=400, num_image_tokens=4)


def png(color) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(file, "png")
    return file.getvalue()


def chat(question: str, answer: str) -> bytes:
    messages = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return json.dumps(dict(conversations=messages)).encode()


def shard(path, members: list[tuple[str, bytes]], form=tarfile.PAX_FORMAT) -> str:
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return str(path)


@pytest.fixture
def shards(tmp_path):
    shard(
        tmp_path / "b.tar",
        [("one.json", chat("<image>\nwhat?", "red")), ("one.png", png("red")), ("two.json", chat("hello?", "hi"))],
    )
    pair = [("d/0001.0.PNG", png("blue")), ("d/0001.1.png", png("lime")), ("d/0001.cls", b"7")]
    shard(
        tmp_path / "c.tar",
        [*pair, ("d/0001.json", chat("<image> or <image>?", "both")), ("cap.png", png("white")), ("cap.txt", b"a wall")]
        + [("only.png", png("black"))],
    )
    return tmp_path


def build(files, **kwargs) -> TarDataset:
    return DATASETS.build(dict(type="TarDataset", files=str(files)), default_args=ITEM | kwargs)


def test_samples_of_every_kind_in_the_order_of_the_shards(shards):
    dataset = build(shards / "*.tar")
    records = [dataset.record(i) for i in range(len(dataset))]
    texts = [[m["value"] for m in record.get("conversations", [])] for record in records]
    assert texts == [
        ["<image>\nwhat?", "red"],
        ["hello?", "hi"],
        ["<image> or <image>?", "both"],
        ["<image>", "a wall"],
        [],
    ]
    items = list(dataset)
    colors = [[open_image(source).getpixel((0, 0)) for source in item["images"]] for item in items]
    white = (255, 255, 255)
    assert colors == [[(255, 0, 0)], [], [(0, 0, 255), (0, 255, 0)], [white], [(0, 0, 0)]]
    assert [item["sample_id"] for item in items] == [
        f"{shards}/{name}" for name in ("b.tar:0", "b.tar:1", "c.tar:0", "c.tar:1", "c.tar:2")
    ]
    assert list(dataset.texts()) == ["\nwhat?", "red", "hello?", "hi", " or ?", "both", "", "a wall"]
    keys = [key for key, _ in dataset.images()]
    assert keys == [key for item in items for key in item["image_keys"]] and len(set(keys)) == 5
    assert dataset.question(0)["answer"] == "red"


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@settings(max_examples=25, deadline=None)
@given(
    samples=st.lists(
        st.tuples(st.text("aä/€-_", max_size=130).map(lambda key: f"x{key}"), st.binary(max_size=1200)),
        max_size=6,
        unique_by=lambda sample: sample[0],
    )
)
def test_the_index_finds_the_bytes_of_every_member(tmp_path_factory, form, samples):
    path = tmp_path_factory.mktemp("tar") / "x.tar"
    samples = [(key.rstrip("/") + str(i), data) for i, (key, data) in enumerate(samples)]
    shard(path, [(f"{key}.{field}", data + field.encode()) for key, data in samples for field in ("bin", "json")], form)
    found, whole = scan_tar(str(path)), path.read_bytes()
    assert [whole[a:b] for a, b in found["spans"]] == [data + f for _, data in samples for f in (b"bin", b"json")]
    assert found["samples"].tolist() == list(range(0, 2 * len(samples) + 1, 2))
    names, ends = found["names"].tobytes(), [0, *found["name_ends"].tolist()]
    assert [names[a:b].decode() for a, b in zip(ends[:-1:2], ends[1::2], strict=True)] == [
        f"{k}.bin" for k, _ in samples
    ]


def test_a_kept_index_gives_the_same_and_opens_nothing(shards, monkeypatch):
    monkeypatch.setattr(file_index, "KEPT_FROM", 0)
    monkeypatch.setattr(file_index, "SETTLED", -1)
    first = build(shards / "*.tar")
    monkeypatch.setattr("asvr.data.tar.scan_tar", None)
    monkeypatch.setattr(file_index, "sha256_of", None)
    again = build(shards / "*.tar")
    assert list(again) == list(first) and again.fingerprint() == first.fingerprint()
    names = sorted(file.name for file in shards.iterdir())
    assert names == ["b.tar", "b.tar.asvr-index", "c.tar", "c.tar.asvr-index"]


def test_pictures_are_told_apart_by_content_without_reading_them(shards, monkeypatch, tmp_path):
    pictures = dict(build(shards / "*.tar").images())
    before = [open_image(source) for source in pictures.values()]
    with monkeypatch.context() as patch:
        patch.setattr("asvr.data.tar._read", None)
        hashes = hash_images(tmp_path / "cache", pictures)
    assert len(set(hashes.values())) == len(before) == 5
    moved = (shards / "b.tar").rename(shards / "moved.tar")
    other = hash_images(tmp_path / "cache", dict(build(moved).images()))
    assert set(other.values()) < set(hashes.values())  # the shard's name is no part of it
    shard(moved, [("one.png", png("green"))])
    assert not set(hash_images(tmp_path / "cache", dict(build(moved).images())).values()) & set(hashes.values())


def test_a_broken_picture_is_named(shards):
    path = shard(shards / "x.tar", [("k.png", png("red")[:30]), ("l.png", png("red"))])
    view = dict(encoder=ImageTransform(size=(4, 4)))
    batch = Collate(layout=FixedTokens(4), views=view, pad_id=0, on_error="skip")(list(build(path)))
    assert [refusal.reason for refusal in batch.refusals] == ["unreadable image"]
    assert f"{path}:k.png" in batch.refusals[0].message and batch.num_images == 1


@pytest.mark.parametrize(
    ("members", "reason", "text"),
    [
        ([("k.json", b"{no")], "malformed", "not JSON"),
        ([("k.json", b"[1]")], "malformed", "not a JSON object"),
        ([("k.txt", b"\xff")], "malformed", "txt of the sample is not UTF-8"),
        ([("k.json", b'{"image": ["a.png", "b.png"]}'), ("k.png", png("red"))], "missing image", "names 2 images"),
        ([("k.cls", b"1")], "no conversation", "neither"),
    ],
)
def test_a_refusal_names_shard_record_and_key(tmp_path, members, reason, text):
    path = shard(tmp_path / "x.tar", [("j.json", chat("a?", "b")), *members])
    with pytest.raises(Refused, match=rf"{path}, record 1 \(k\): .*{text}") as refused:
        build(path)[1]
    assert refused.value.reason == reason
    assert isinstance(build(path, on_error="skip")[1], Refusal)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(b"x", mtime=0), r"x.tar is compressed \(gzip\)"),
        (b"(\xb5/\xfd123", r"compressed \(zstd\)"),
        (b"no tar file at all", "cannot be read as a tar file"),
    ],
)
def test_what_is_no_plain_tar_is_refused(tmp_path, data, message):
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        build(tmp_path / "x.tar")


def test_a_shard_that_is_cut_off_or_empty_is_refused(tmp_path):
    path = tmp_path / "x.tar"
    shard(path, [("a.json", b"x" * 2000), ("b.json", b"x" * 2000)])
    whole = path.read_bytes()
    damaged = whole[:2600] + b"!" + whole[2601:]  # in the second header
    for data in (whole[:1000], whole[:2560], whole[:3000], whole[:4000], whole[:5120], damaged):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="x.tar cannot be read as a tar file"):
            build(path)
    shard(path, [("README", b"no sample"), ("__meta.json", b"1"), (".hidden.json", b"1")])
    with pytest.raises(ValueError, match="have no records"):
        build(path)


TEXT = st.text("abc é?", min_size=1).filter(str.strip)


@settings(max_examples=25, deadline=None)
@given(
    samples=st.lists(st.tuples(st.integers(0, 2), TEXT, TEXT, st.booleans()), min_size=1, max_size=6),
    per_shard=st.integers(1, 3),
)
def test_shards_give_the_samples_of_a_json_file(tmp_path_factory, samples, per_shard):
    """Whatever form a record has, and however many samples a shard has."""
    folder = tmp_path_factory.mktemp("shards")
    records, members = [], []
    for i, (count, question, answer, chat_form) in enumerate(samples):
        names = [f"{i}.{n}.png" for n in range(count)]
        for n, name in enumerate(names):
            (folder / name).write_bytes(png((i, n, 0)))
        parts = [dict(type="image")] * count + [dict(type="text", text=question)]
        if chat_form:
            said = dict(messages=[dict(role="user", content=parts), dict(role="assistant", content=answer)])
        else:
            said = json.loads(chat("<image>\n" * count + question, answer))
        records.append(said | (dict(images=names) if chat_form else dict(image=names)))
        members.append(
            [(f"{i}.json", json.dumps(said).encode()), *((name, (folder / name).read_bytes()) for name in names)]
        )
    (folder / "rows.json").write_text(json.dumps(records))
    groups = [members[i : i + per_shard] for i in range(0, len(members), per_shard)]
    for number, group in enumerate(groups):
        shard(folder / f"{number:03}.tar", [member for sample in group for member in sample])
    files = f"{folder}/{{000..{len(groups) - 1:03}}}.tar"
    plain = DATASETS.build(dict(type="LlavaDataset", ann_file=str(folder / "rows.json")), default_args=ITEM)
    for one, other in zip(build(files), plain, strict=True):
        assert (one["input_ids"], one["labels"]) == (other["input_ids"], other["labels"])
        assert [open_image(s).tobytes() for s in one["images"]] == [open_image(s).tobytes() for s in other["images"]]


def test_a_record_in_a_shard_may_name_or_hold_its_images(tmp_path):
    url = f"data:image/png;base64,{base64.b64encode(png('blue')).decode()}"
    held = [dict(type="image_url", image_url=dict(url=url)), dict(type="text", text="what?")]
    named = [dict(type="image", image=f"d/k.{n}.png") for n in ("b", "a")] + [dict(type="text", text="what?")]
    talks = [[dict(role="user", content=content), dict(role="assistant", content="x")] for content in (held, named)]
    members = [(f"{key}.json", json.dumps(dict(messages=talk)).encode()) for key, talk in zip("jk", talks, strict=True)]
    path = shard(tmp_path / "x.tar", [*members, ("k.a.png", png("red")), ("k.b.png", png("lime"))])
    colors = [[open_image(source).getpixel((0, 0)) for source in item["images"]] for item in build(path)]
    assert colors == [[(0, 0, 255)], [(0, 255, 0), (255, 0, 0)]]
    with pytest.raises(Refused, match="its json holds images, and so does the shard"):
        build(shard(tmp_path / "y.tar", [members[0], ("j.png", png("red"))]))[0]
