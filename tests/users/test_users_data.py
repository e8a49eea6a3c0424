"""What users' data hold that must not be trained on, stored or left out without a word."""

import io
import json
import logging
import tarfile

import pytest
import torch
from data_helpers import FixedTokens, byte_level, chat
from edge_helpers import EDGES
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from run_helpers import call_tool

from asvr.caches.codes import CodeStore
from asvr.caches.features import FeatureCache, build_feature_cache
from asvr.data.collate import Collate
from asvr.data.llava import LlavaDataset
from asvr.data.record_keys import unread_keys
from asvr.data.refusals import Refusal, Refused
from asvr.data.tar import TarDataset
from asvr.models.encoders.base import Encoder
from asvr.models.targets.codes import CodeTruth
from asvr.models.tokenizers.base import VisualTokenizer
from asvr.pretrained import Pretrained

ITEM = dict(tokenizer=byte_level(), template="vicuna_v1", max_length=600, num_image_tokens=4)
VIEW = dict(size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8), "red").save(folder / name)
    return folder


def dataset(folder, *records, **kwargs) -> LlavaDataset:
    file = folder / "rows.json"
    file.write_text(json.dumps(records))
    return LlavaDataset(ann_file=str(file), **ITEM | kwargs)


# Caches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        (torch.full((1, 4, 2), 0.7), "are torch.float32: expected integers"),
        (torch.ones(1, 4, 2, dtype=torch.bool), "are torch.bool: expected integers"),
        (torch.full((1, 4, 2), 9), "the code 9 of level 0 is not in its codebook; expected 0 to 7"),
        (torch.full((1, 4, 2), -1), "the code -1 of level 0"),
        (torch.full((1, 4, 2), 70000), "the code 70000 of level"),  # which int16 would make another code of
        (torch.zeros(1, 3, 2, dtype=torch.int64), r"have the shape \(1, 3, 2\), expected \(1, 4, 2\)"),
    ],
)
def test_a_store_of_codes_refuses_what_it_was_not_made_for(tmp_path, codes, words):
    store = CodeStore(tmp_path, "semantic", depends_on={}, shape=(4, 2), size=8)
    with store.writer("0") as writer, pytest.raises(ValueError, match=f"target 'semantic'.*{words}"):
        writer.add(["ab" * 32], codes)
    store.reload()
    assert not store.rows


class Colours(Encoder):
    """Features of a dtype that changes, or not, from batch to batch."""

    source, width, grid = "here", 3, (2, 2)

    def __init__(self, *dtypes):
        super().__init__()
        from asvr.data.transforms import ImageTransform

        self.transform, self.dtypes = ImageTransform(**VIEW), list(dtypes)

    def forward(self, pixels):
        dtype = self.dtypes.pop(0) if len(self.dtypes) > 1 else self.dtypes[0]
        return torch.full((len(pixels), 4, 3), 1.7).to(dtype)


class Codes(VisualTokenizer):
    codebook_sizes, code_width, grid, fitted = [4, 4], 2, (2, 2), True

    def __init__(self, encoder, codes):
        super().__init__()
        self.transform, self.codes = encoder.transform, codes

    def encode(self, pixels):
        return self.codes.expand(len(pixels), 4, 2)


def features(folder, encoder, count=1) -> FeatureCache:
    sources = {f"{i}": Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(count)}
    return build_feature_cache(folder, encoder, sources, "square", torch.device("cpu"), config={})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_features_are_kept_in_the_encoders_own_dtype(tmp_path, dtype):
    found = features(tmp_path, Colours(dtype)).features(["0"])
    assert found.dtype == dtype and torch.equal(found, torch.full((1, 4, 3), 1.7).to(dtype))


def test_features_of_another_dtype_are_refused(tmp_path):
    with pytest.raises(ValueError, match="features are torch.int64: expected one of torch.float32"):
        features(tmp_path, Colours(torch.int64))
    with pytest.raises(ValueError, match="are torch.bfloat16 .* those of its first batch are torch.float32"):
        features(tmp_path, Colours(torch.float32, torch.bfloat16), count=40)


@pytest.mark.parametrize(
    ("codes", "words"), [(torch.tensor(1.7), "are torch.float32"), (torch.tensor(4), "the code 4 of level 0")]
)
def test_codes_beside_cached_features_are_checked_too(tmp_path, codes, words):
    encoder = Colours(torch.float32)
    cache, sources = features(tmp_path, encoder), {"0": Image.new("RGB", (8, 8))}
    with pytest.raises(ValueError, match=f"codes of target 'own'.*{words}"):
        own = CodeTruth(name="own", tokenizer=Codes(encoder, codes), encoder=encoder)
        cache.add_truth(own, images=sources, aspect="square", device=torch.device("cpu"), config={})


def test_a_tokenizer_that_returns_floats_online_is_refused(monkeypatch):
    from engine_helpers import collate, item, tiny_model

    model = tiny_model()
    batch = collate(model)([item(image=Image.new("RGB", (8, 8)))])
    quantize = model.targets[0].tokenizer.quantize
    assert model(batch)["semantic"] > 0
    monkeypatch.setattr(model.targets[0].tokenizer, "quantize", lambda features: quantize(features) + 0.7)
    with pytest.raises(ValueError, match="codes of target 'semantic' are torch.float32: expected integers"):
        model(batch)


def test_a_text_tokenizer_that_returns_floats_is_refused():
    row = dict(input_ids=[1, 2.7, 3], labels=[-100, 2.7, 3], images=[], image_keys=[], sample_id="x:0")
    with pytest.raises(ValueError, match="expected integers, the ids of tokens"):
        Collate(layout=FixedTokens(4), views={}, pad_id=0)([row])


# Keys of records -------------------------------------------------------------------------------------------

SAID = chat("<image>\nwhat?", "red")


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (dict(image="a.png", conversatons=SAID), "'conversatons'; did you mean 'conversations'"),
        (dict(image="a.png", Conversations=SAID), "'Conversations'; did you mean 'conversations'"),
        (dict(imgae="a.png", conversations=chat("what?", "red")), "'imgae'; did you mean 'image'"),
        (dict(image_path="a.png", conversations=chat("what?", "red")), "'image_path' names an image"),
        (dict(image="a.png", images=["a.png", "b.png"], conversations=SAID), "'images'"),
        (dict(image="a.png", caption="a wall"), "'caption'"),
        (dict(image="a.png", blip_caption="a wall", url="http://x/a.jpg"), "'blip_caption'"),
        (dict(image="a.png", dialog_of_experts=[dict(a="hi")]), "'dialog_of_experts' in a record without"),
        (dict(image="a.png", conversations=SAID, video="a.mp4"), "'video'"),
        (dict(image="a.png", conversations=SAID, system="Answer in French."), "'system'"),
        (dict(image="a.png", conversations=SAID, weight=0), "'weight'"),
        (dict(image="a.png", conversations=SAID, answer="blue"), "'answer'"),
        (dict(image="a.png", conversations=[SAID[0], dict(SAID[1], weight=0)]), "'weight' in message 1"),
        (dict(image="a.png", conversations=[SAID[0], dict(SAID[1], content="blue")]), "'content' in message 1"),
    ],
)
def test_content_that_nobody_would_read_is_refused(pictures, record, words):
    rows = dataset(pictures, record)
    with pytest.raises(Refused, match=f"record 0: unknown key {words}") as refused:
        rows[0]
    assert refused.value.reason == "unknown key" and "\n" not in str(refused.value)
    for look in (rows.question, lambda i: list(rows.texts()), lambda i: list(rows.images())):
        with pytest.raises(Refused, match="unknown key"):
            look(0)
    keys = {*record, *(key for m in record.get("conversations", []) for key in m)} - {"image", "conversations"}
    if "image" in record and "conversations" in record:
        assert dataset(pictures, record, ignore=[*keys - {"from", "value"}])[0]["images"]


@pytest.mark.parametrize(
    "more",
    [
        dict(id="000000033471"),
        dict(id=7, model="", source="coco", data_source="x", width=640, height=480, image_size=[640, 480]),
        dict(sample_id=1, metadata=dict(dataset="x", task_instruction="Say what it is.")),
        dict(video=None, images=[], system="", tools={}),
        dict(url="http://x/a.jpg", image_url="http://x/a.jpg", file_name="coco/a.jpg", key="0001", status="success"),
        dict(answer="red", question="what?"),  # the same text once more
        dict(images=["a.png"]),
    ],
)
def test_files_of_the_llava_family_are_taken(pictures, more):
    row = dataset(pictures, dict(image="a.png", conversations=SAID, **more))[0]
    assert len(row["images"]) == 1 and set(row["unread"]) <= {"answer", "question", "images"}


def test_other_keys_are_told_once(pictures, caplog, monkeypatch):
    rows = dataset(pictures, *[dict(image="a.png", conversations=SAID, difficulty=3)] * 4)
    rows.source = "a source that nobody has told of"
    monkeypatch.setattr(logging.getLogger("asvr"), "propagate", True)
    with caplog.at_level("INFO", "asvr"):
        assert [row["unread"] for row in rows] == [["difficulty"]] * 4
    told = [r for r in caplog.records if "'difficulty' is not read" in r.getMessage()]
    assert len(set(map(id, told))) == 1  # pytest catches a line of a logger twice that did not propagate before


def _tar(folder, members: dict) -> TarDataset:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(file, "png")
    with tarfile.open(folder / "x.tar", "w") as tar:
        for name, data in members.items():
            data = file.getvalue() if data is None else data
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return TarDataset(files=str(folder / "x.tar"), **ITEM)


RECORD = json.dumps(dict(conversations=SAID)).encode()


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"k.png": None, "k.json": RECORD, "k.txt": b"a wall"}, "unknown key 'txt'; did you mean 'conversations'"),
        ({"k.png": None, "k.json": RECORD, "k.mp4": b"x"}, "unknown member 'mp4'"),
        ({"k.png": None, "k.caption": b"a wall"}, "unknown member 'caption'"),
        ({"k.png": None, "k.json": b'{"caption": "a wall"}'}, "unknown key 'caption'"),
        ({"k.json": RECORD, "k.png": None, "k.JSON": RECORD}, "two members of the field 'json'"),
    ],
)
def test_members_of_a_tar_that_nobody_would_read_are_refused(tmp_path, members, words):
    with pytest.raises(Refused, match=f"record 0 .*{words}"):
        _tar(tmp_path, members)[0]


def test_a_tar_of_img2dataset_is_taken_and_named_pictures_keep_their_order(tmp_path):
    meta = dict(caption="a wall", url="http://x/a.jpg", key="k", status="success", width=4, height=4, exif="{}")
    rows = _tar(tmp_path, {"k.jpg": None, "k.json": json.dumps(meta).encode(), "k.txt": b"a wall\n"})
    assert rows.record(0)["conversations"][1]["value"] == "a wall\n" and len(rows[0]["images"]) == 1
    names = json.dumps(dict(image=["x/k.b.png", "x/k.a.png"], conversations=chat("<image><image>", "no"))).encode()
    rows = _tar(tmp_path, {"k.a.png": None, "k.b.png": None, "k.json": names})
    assert [source.name for source in rows[0]["images"]] == ["k.b.png", "k.a.png"]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (dict(image=["a.png"], caption=["a wall"]), "unknown column 'caption'"),
        (dict(image=["a.png"], what_it_says=["a wall"]), "unknown column 'what_it_says'"),
        (dict(question=["what?"], answer=["red"], photos=[["a.png"]]), "unknown column 'photos'; did you mean 'image'"),
        (dict(question=["what?"], answer=["red"], picture=["a"]), "unknown column 'picture'; did you mean 'image'"),
        (dict(question=["what?"], answer=["red"], scan=[b"png"]), "unknown column 'scan'"),
    ],
)
def test_columns_that_nobody_would_read_are_refused(tmp_path, columns, words):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    from asvr.data.parquet import ParquetDataset

    parquet.write_table(pyarrow.table(dict(columns, id=[1], width=[4])), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=words):
        ParquetDataset(files=str(tmp_path / "x.parquet"), **ITEM)
    unread = list(columns.keys() - {"image", "question", "answer"})
    assert len(ParquetDataset(files=str(tmp_path / "x.parquet"), ignore=unread, **ITEM)) == 1


WORDS = st.text("abcdefghijk", min_size=1, max_size=8).map(lambda text: f"w{text}w")
NAMES = ["image", "images", "imge", "conversations", "conversation", "messages", "text", "id", "source", "width", "odd"]
NAMES += ["caption", "system", "video", "weight", "category", "Image", "odd key", "answer"]
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"from": st.sampled_from(["human", "gpt", "system", "user"]), "value": WORDS},
        optional=dict(content=WORDS, weight=st.sampled_from([0, 1, None]), id=st.integers()),
    ),
    max_size=3,
)
TALKS = st.tuples(WORDS, WORDS).map(lambda said: chat(*said))
VALUES = st.one_of(
    WORDS, st.none(), st.integers(), st.lists(WORDS, max_size=2), MESSAGES, TALKS, st.sampled_from(["a.png", "b.png"])
)
RECORDS = st.one_of(
    st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4),
    st.tuples(TALKS, st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=2)).map(
        lambda parts: dict(parts[1], conversations=parts[0], image="a.png")
    ),
)
DESCRIBES = {"id", "source", "width", "category"}


def _words(value) -> set[str]:
    if isinstance(value, dict):
        return {word for item in value.values() for word in _words(item)}
    if isinstance(value, list):
        return {word for item in value for word in _words(item)}
    return {value} if isinstance(value, str) else set()


@settings(max_examples=400, deadline=None)
@given(record=RECORDS)
@example(record=dict(image="a.png", messages=[{"from": "human", "value": "wxw"}]))
@example(record=dict(image="a.png", conversations=chat("waw", "wbw"), odd="wcw"))
def test_a_record_is_trained_on_with_all_that_it_holds_or_refused_with_a_reason(pictures, record):
    rows = dataset(pictures, record, on_error="skip", max_length=4000)
    item = rows[0]
    if isinstance(item, Refusal):
        assert item.reason and item.message.startswith(f"{rows.source}, record 0: ")
        return
    text = byte_level().decode([token for token in item["input_ids"] if token >= 0])
    used = {source.name for source in item["images"]}
    for key, value in record.items():
        if key in DESCRIBES:
            continue
        messages = value if key in ("conversations", "conversation", "messages") and isinstance(value, list) else []
        messages = messages if all(isinstance(message, dict) for message in messages) else []
        spoken = [{k: v for k, v in m.items() if k in ("value", "content")} for m in messages or []]
        lost = {word for word in _words(spoken if spoken else value) if word not in text and word not in used}
        assert not lost or key in item["unread"], (record, lost)
        read = ("image", "images", "conversations", "conversation", "messages")
        assert key in read or key in item["unread"] or not value or not lost


# What can be learned ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "labels", "shifts", "tokens", "learned"),
    [
        ([1, -200, 5], [-100, -100, 5], [], 4, True),
        ([1, -200, 5], [-100, -100, -100], [], 4, False),  # an answer that was cut, and no target
        ([1, -200, 5], [-100, -100, -100], [1], 4, True),
        ([1, -200, 5], [-100, -100, -100], [0], 4, True),
        ([-200], [-100], [1], 4, True),
        ([-200], [-100], [1], 1, False),  # nothing stands in front of its only visual token
        ([-200], [-100], [0], 1, True),
        ([-200, -200], [-100, -100], [1], 1, True),
        ([7], [7], [1], 4, False),  # nothing predicts the first token
    ],
)
def test_rows_with_nothing_to_learn_are_left_out_in_training(ids, labels, shifts, tokens, learned):
    images = [Image.new("RGB", (8, 8))] * ids.count(-200)
    keys = [str(i) for i in range(len(images))]
    row = dict(input_ids=ids, labels=labels, images=images, image_keys=keys, sample_id="x:0")
    make = dict(layout=FixedTokens(tokens), views={}, pad_id=0, on_error="skip")
    batch = Collate(**make, shifts=shifts)([row])
    assert [refusal.reason for refusal in batch.refusals] == ([] if learned else ["nothing to learn"])
    supervised = batch.num_text_targets + sum(batch.num_visual_targets(shift) for shift in shifts)
    assert (supervised > 0) == learned
    assert not Collate(**make)([row]).refusals  # a question is no training row


@pytest.mark.parametrize(("targets", "code"), [(True, 0), (False, 3)])
def test_check_data_knows_the_models_targets(edges, tmp_path, targets, code):
    from edge_helpers import options

    own = options(edges.parent, "no_text", cache=True, how={}, num_workers=0, targets=targets, on_error="skip")
    own = {key: own[key] for key in own if key.startswith(("model", "stages"))}
    from asvr.engine.check_data import check_sources, sources_of_config

    train = dict(_delete_=True, type="LlavaDataset", ann_file=str(edges.parent / "no_text.json"))
    sources = sources_of_config(str(edges), None, own | {"data.train": train, "evaluation": None})
    good = check_sources(sources, out=tmp_path, workers=0, limit=None, decode=True)
    assert good == (code == 0)
    reasons = [found["refused"] for found in json.loads((tmp_path / "report.json").read_text()).values()]
    assert all(found == ({} if targets else {"nothing to learn": len(EDGES["no_text"])}) for found in reasons)


# Files, URLs and chat -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [dict(image="a.png", conversations=SAID), dict(data=[dict(image="a.png")])])
def test_one_json_object_over_several_lines_is_told(pictures, value):
    file = pictures / "object.json"
    file.write_text(json.dumps(value, indent=1))
    with pytest.raises(ValueError, match="one JSON object over several lines: expected a list of records, .* a line"):
        LlavaDataset(ann_file=str(file), **ITEM)
    file.write_text(json.dumps([value], indent=1))
    assert len(LlavaDataset(ann_file=str(file), **ITEM)) == 1
    file.write_text(json.dumps(value) + "\n" + json.dumps(value))
    assert len(LlavaDataset(ann_file=str(file), **ITEM)) == 2
    file.write_text("{broken\n" + json.dumps(value))  # a bad line alone is a bad record
    assert len(LlavaDataset(ann_file=str(file), **ITEM)) == 2


BASE64 = "iVBORw0KGgo" + "A" * 300


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("http://x.org/a.png", "is a URL, and URLs are not read: download it"),
        ("https://x.org/a.png", "is a URL"),
        ("s3://bucket/a.png", "is a URL"),
        ("data:image/png," + "A" * 300, r"\(?base64"),
        (BASE64, "base64"),
        ("/9j/" + "A" * 5001, "base64"),
    ],
)
def test_pictures_that_lie_in_no_file_are_told_as_such(pictures, name, words):
    rows = dataset(pictures, dict(image=name, conversations=SAID))
    with pytest.raises(Refused, match=words) as refused:
        rows[0]
    assert len(str(refused.value)) < 400 + len(str(pictures))
    from asvr.data.images import open_image

    with pytest.raises(Refused, match=words) as refused:
        open_image(name)
    assert len(str(refused.value)) < 400


def test_what_a_chat_is_given_is_not_printed_whole():
    from engine_helpers import tiny_model

    own = Pretrained(
        model=tiny_model(vocab_size=len(byte_level())),
        config={},
        text_tokenizer=byte_level(),
        template="vicuna_v1",
        image_aspect="square",
    )
    large = b"\x89PNG" + bytes(100_000)
    for wrong in (large, [large], bytearray(large)):
        with pytest.raises(ValueError, match="expected a file's name or a PIL image") as error:
            own.chat(wrong, "what?")
        assert len(str(error.value)) < 200
    with pytest.raises(ValueError, match="question b'.*expected a text") as error:
        own.chat(None, large)
    assert len(str(error.value)) < 200
    messages = [{"from": "human", "value": "what?"}]
    with pytest.raises(ValueError, match="prompt 0: unknown key 'image'; did you mean 'images'"):
        own.generate([dict(image=[Image.new("RGB", (8, 8))], messages=messages)])
    with pytest.raises(ValueError, match=r"prompt 0 is .*: expected dict\(images"):
        own.generate([dict(images=[])])
    with pytest.raises(ValueError, match="unknown key 'content' in message 0"):
        own.generate([dict(images=[], messages=[dict(messages[0], content="what else?")])])


def test_check_data_tells_unread_keys(pictures, tmp_path):
    file = pictures / "keys.json"
    rows = [dict(image="a.png", conversations=chat("what?", "red"), difficulty=i) for i in range(3)]
    file.write_text(json.dumps(rows))
    byte_level().save_pretrained(tmp_path / "tokenizer")
    done = call_tool(
        *("tools/check_data.py", "--ann-file", file, "--template", "vicuna_v1", "--tokenizer", tmp_path / "tokenizer"),
        *("--workers", 0, "--out", tmp_path / "out"),
    )
    assert done.returncode == 0, done.stderr
    assert "keys that are not read (number of records): difficulty (3)" in done.stdout


# Keys that are near to ours, or hold nothing ---------------------------------------------------------------------


TALK = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]


@pytest.mark.parametrize(
    "more",
    [
        dict(imageId="x1"),
        dict(image_w=640),
        dict(turns=2),
        dict(video=False),
        dict(weight=1.0),
        dict(caption=["", ""]),
        dict(objects={"ref": [], "bbox": []}),
    ],
)
def test_a_key_beside_the_real_one_is_no_misspelled_one(more):
    assert unread_keys(dict(image="a.png", conversations=TALK, **more)) == list(more)


@pytest.mark.parametrize("more", [dict(imag="b.png"), dict(weight=0.5), dict(caption="a house")])
def test_a_key_that_holds_something_is_refused(more):
    record = dict(conversations=TALK, **more) if "imag" in more else dict(image="a.png", conversations=TALK, **more)
    with pytest.raises(Refused, match="unknown key"):
        unread_keys(record)


def test_where_a_text_is_from_names_no_image():
    talk = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    assert unread_keys(dict(conversations=talk, url="http://x/y.jpg", source="web.png")) == []
