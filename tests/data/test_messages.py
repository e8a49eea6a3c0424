"""Records as OpenAI's and Hugging Face's messages, and ShareGPT's: the same samples as LLaVA's records."""

import base64
import io
import json

import pytest
from data_helpers import byte_level
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from asvr.data.check import Source, scan
from asvr.data.images import open_image
from asvr.data.llava import LlavaDataset
from asvr.data.messages import in_llava_form
from asvr.data.records import ConversationDataset
from asvr.data.refusals import Refused

ITEM = dict(tokenizer=byte_level(), template="vicuna_v1", max_length=4000, num_image_tokens=4)
RED, BLUE = (255, 0, 0), (0, 0, 255)


def png(color) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(file, "png")
    return file.getvalue()


def url(color) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(color)).decode()}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name, color in (("red", "red"), ("blue", "blue"), ("with space", "blue")):
        (folder / f"{name}.png").write_bytes(png(color))
    return folder


def dataset(folder, *records, **kwargs) -> LlavaDataset:
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, records)))
    return LlavaDataset(ann_file=str(file), **ITEM | kwargs)


def colors(item) -> list[tuple]:
    return [open_image(source).getpixel((0, 0)) for source in item["images"]]


def row(item) -> tuple:
    return item["input_ids"], item["labels"]


LLAVA = dict(
    image=["red.png", "blue.png"],
    conversations=[
        {"from": "human", "value": "<image>\nwhat?"},
        {"from": "gpt", "value": "red"},
        {"from": "human", "value": "<image>\nand now?"},
        {"from": "gpt", "value": "blue"},
    ],
)


SAID, OPENAI = LLAVA["conversations"], dict(human="user", gpt="assistant")


def talk(first, second, **more) -> dict:
    said = [("user", first), ("assistant", "red"), ("user", second), ("assistant", [dict(type="text", text="blue")])]
    return dict(messages=[dict(role=role, content=content) for role, content in said], **more)


def asks(image, text: str) -> list[dict]:
    return [image, dict(type="text", text=text)]


def each(make) -> dict:
    return talk(asks(make("red"), "what?"), asks(make("blue"), "and now?"))


FORMS = {
    "parts and a list": talk(
        asks(dict(type="image"), "what?"), asks(dict(type="image"), "and now?"), images=["red.png", "blue.png"]
    ),
    "nulls of a table": talk(
        asks(dict(type="image", text=None, image=None), "what?"),
        asks(dict(type="image", image_url=None), "and now?"),
        image=["red.png", "blue.png"],
        conversations=None,
    ),
    "marks": talk("<image>\nwhat?", "<image>\nand now?", images=["red.png", "blue.png"]),
    "image": each(lambda color: dict(type="image", image=f"{color}.png")),
    "path": each(lambda color: dict(type="image", path=f"{color}.png")),
    "a dict of a path": each(lambda color: dict(type="image", image=dict(bytes=None, path=f"{color}.png"))),
    "image_url": each(lambda color: dict(type="image_url", image_url=dict(url=url(color), detail="low"))),
    "image_url as a text": each(lambda color: dict(type="image_url", image_url=url(color))),
    "input_image": each(lambda color: dict(type="input_image", image_url=url(color), detail="auto")),
    "base64": each(lambda color: dict(type="image", base64=url(color).partition(",")[2])),
    "one of the list": talk(
        asks(dict(type="image", image="red.png"), "what?"), asks(dict(type="image"), "and now?"), images=["blue.png"]
    ),
    "the list once more": each(lambda color: dict(type="image", image=f"{color}.png"))
    | dict(images=["red.png", "blue.png"]),
    "ShareGPT": dict(LLAVA, conversations=[dict(m, **{"from": OPENAI[m["from"]]}) for m in SAID]),
    "conversation": dict(images=LLAVA["image"], conversation=LLAVA["conversations"]),
    "role and value": dict(LLAVA, conversations=[dict(role=m["from"], value=m["value"]) for m in SAID]),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_spelling_gives_the_sample_of_llavas_record(folder, form):
    expected, found = dataset(folder, LLAVA)[0], dataset(folder, FORMS[form])[0]
    assert row(found) == row(expected) and colors(found) == colors(expected) == [RED, BLUE]
    assert found["unread"] == [] and len(set(found["image_keys"])) == 2
    asked = dataset(folder, FORMS[form]).question(0)
    assert (asked["question"], asked["answer"]) == ("and now?", "blue")
    assert list(dataset(folder, FORMS[form]).texts()) == list(dataset(folder, LLAVA).texts())
    assert [open_image(s).getpixel((0, 0)) for _, s in dataset(folder, FORMS[form]).images()] == [RED, BLUE]
    source = Source(
        name="x", dataset=dataset(folder, FORMS[form], on_error="skip"), max_length=None, num_image_tokens=4
    )
    assert scan(source, report=io.StringIO(), workers=0)[0].pictures == 2


PIECES = st.lists(st.one_of(st.none(), st.text("abc é.\n", min_size=1).filter(str.strip)), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(
    talk=st.lists(st.tuples(PIECES, st.text("abc é", min_size=1).filter(str.strip)), min_size=1, max_size=3),
    system=st.sampled_from([None, "Be brief."]),
)
def test_parts_are_the_conversation_with_marks(folder, talk, system):
    messages, said, images = [], [], 0
    if system:
        messages.append(dict(role="system", content=system))
        said.append({"from": "system", "value": system})
    for pieces, answer in talk:
        parts = [dict(type="image") if piece is None else dict(type="text", text=piece) for piece in pieces]
        images += pieces.count(None)
        lead = next((i for i, piece in enumerate(pieces) if piece is not None), len(pieces))
        rest = "".join("<image>" if piece is None else piece for piece in pieces[lead:])
        text = "\n".join(["<image>"] * lead + ([rest] if rest else []))
        messages += [dict(role="user", content=parts), dict(role="assistant", content=answer)]
        said += [{"from": "human", "value": text}, {"from": "gpt", "value": answer}]
    names = [("red.png", "blue.png")[i % 2] for i in range(images)]
    ours = dataset(folder, dict(image=names, conversations=said))[0]
    theirs = dataset(folder, dict(images=names, messages=messages))[0]
    assert row(ours) == row(theirs) and ours["image_keys"] == theirs["image_keys"]


def test_images_of_any_kind_in_a_data_set_of_ones_own():
    class Own(ConversationDataset):
        source = "own"

        def __len__(self):
            return 4

        def record(self, i):
            image = [png("red"), dict(bytes=png("red"), path="x.png"), Image.new("RGB", (4, 4), "red"), url("red")][i]
            if i % 2:
                return dict(
                    image=image, messages=[dict(role="user", content="what?"), dict(role="assistant", content="r")]
                )
            parts = [dict(type="image", image=image), dict(type="text", text="what?")]
            return dict(messages=[dict(role="user", content=parts), dict(role="assistant", content="r")])

    own = Own(**ITEM)
    assert [colors(item) for item in own] == [[RED]] * 4 and len({str(row(item)) for item in own}) == 1
    keys = [item["image_keys"][0] for item in own]
    assert keys[0] == keys[1] == keys[3] and [key for key, _ in own.images()] == [keys[0], keys[2]]
    assert own.fingerprint() == Own().fingerprint()


def test_a_list_of_images_holds_none_of_their_bytes(folder):
    rows = dataset(folder, FORMS["image_url"])
    for key, source in rows.images():
        assert not hasattr(source, "data") and key.endswith(source.sha256()) and "rows.jsonl, record 0" in str(source)
    large = dict(images=[url("red") + " " * 5_000_000], messages=talk("what?", "and?")["messages"])
    assert colors(dataset(folder, large)[0]) == [RED]


def test_file_urls_and_paths(folder):
    place = (folder / "with space.png").as_uri()
    assert colors(dataset(folder, talk(asks(dict(type="image_url", image_url=dict(url=place)), "q"), "r"))[0]) == [BLUE]
    with pytest.raises(Refused, match="lies outside image_folder"):
        dataset(folder, talk(asks(dict(type="image", image="file:///etc/passwd"), "q"), "r"))[0]
    with pytest.raises(Refused, match="is a URL"):
        dataset(folder, talk(asks(dict(type="image", image="file://host/a.png"), "q"), "r"))[0]


@pytest.mark.parametrize(
    ("record", "reason", "words"),
    [
        (
            talk(asks(dict(type="image_url", image_url=dict(url="https://x.org/a.png")), "q"), "r"),
            *("URL", "'https://x.org/a.png' is a URL, and URLs are not read: download it"),
        ),
        (dict(images=["http://x.org/a.png"], **talk("q", "r")), "URL", "is a URL"),
        (
            talk([dict(type="video", video="a.mp4")], "r"),
            "part",
            "message 0, part 0 has the type 'video': only text and",
        ),
        (talk("q", [dict(type="input_audio", input_audio={})]), "part", "message 2, part 0 has the type 'input_audio'"),
        (talk([dict(text="q")], "r"), "part", "has the type None"),
        (
            talk([dict(type="text", text="q", image="red.png")], "r"),
            "part",
            "has the key 'image': a part of type 'text'",
        ),
        (
            talk([dict(type="image", image="red.png", url="blue.png")], "r"),
            "part",
            "'image' and 'url': expected only one",
        ),
        (talk([dict(type="image", file_id="7")], "r"), "part", "has the key 'file_id'"),
        (talk([dict(type="text", text=7)], "r"), "part", "has the text 7"),
        (dict(messages=[*talk("q", "r")["messages"], dict(role="tool", content="7")]), "roles", "is from 'tool'"),
        (
            dict(messages=[dict(role="assistant", content=None, tool_calls=[dict(id="1")])]),
            *("part", "message 0 has 'tool_calls'"),
        ),
        (dict(tools=[dict(name="f")], **talk("q", "r")), "unknown key", "unknown key 'tools'"),
        (talk(asks(dict(type="image"), "q"), "r"), "image marks", "1 <image> marks .* 0 images"),
        (talk(asks(dict(type="image"), "q"), "r", images=["red.png"] * 2), "image marks", "1 <image> .* 2 images"),
        (talk(asks(dict(type="image", image="red.png"), "q"), "r", images=["blue.png"]), "image marks", "2 images"),
        (dict(images=["data:image/png;base64,@@@"], **talk("q", "r")), "inline image", "is not base64"),
        (
            dict(image="red.png", images=[dict(path="blue.png")], **talk("q", "r")),
            "malformed",
            "'image' and in 'images'",
        ),
        (dict(images=[dict(colour=7)], **talk("q", "r")), "malformed", "expected a file name or a list"),
        (dict(messages=[dict(role="user", content="q", name="Al")]), "unknown key", "unknown key 'name' in message 0"),
    ],
)
def test_what_is_not_read_is_refused_with_file_and_record(folder, record, reason, words):
    rows = dataset(folder, LLAVA, record)
    for look in (lambda: rows[1], lambda: rows.question(1)):
        with pytest.raises(Refused, match=rf"rows.jsonl, record 1: .*{words}") as refused:
            look()
        assert refused.value.reason == reason and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("template", "text"),
    [("vicuna_v1", "Be brief. USER"), ("chatml", "system\nBe brief."), ("llama_2", "<<SYS>>\nBe br")],
)
def test_a_system_message_takes_the_place_of_the_templates_own(folder, template, text):
    record = dict(messages=[dict(role="system", content="Be brief."), *talk("q", "r")["messages"]])
    ids, labels = row(dataset(folder, record, template=template)[0])
    assert (ids, labels) == row(dataset(folder, talk("q", "r"), template=dict(type=template, system="Be brief."))[0])
    assert text in byte_level().decode(ids)
    blank = dict(messages=[dict(role="system", content=""), *talk("q", "r")["messages"]])
    assert row(dataset(folder, blank, template=template)[0]) == row(
        dataset(folder, talk("q", "r"), template=template)[0]
    )


def test_a_template_without_a_system_message_refuses_one(folder):
    said = [
        dict(role="system", content="Be brief."),
        dict(role="user", content="q"),
        dict(role="assistant", content="r"),
    ]
    with pytest.raises(Refused, match="has a system message, and the template Plain has no place for it"):
        dataset(folder, dict(image="red.png", messages=said), template="plain")[0]


def test_records_of_llava_stay_what_they_are():
    for record in (LLAVA, dict(image="a.png"), dict(LLAVA, image="a.png", id=7), dict(conversations="odd"), {}):
        assert in_llava_form(record) == record
