"""A user's own chat data: the tokenizer's template, streams and messages in whole runs, and in a model that answers."""

import base64
import io
import json
import shutil
from pathlib import Path

import pytest
from data_helpers import byte_level
from engine_helpers import tiny_model
from jinja_templates import QWEN2, QWEN2_VL
from parallel_helpers import make_config, train
from PIL import Image
from safetensors.torch import load_file

import asvr
from asvr.data.refusals import Refused
from asvr.engine.checkpoint import newest
from asvr.pretrained import Pretrained
from asvr.recipe.model_file import check_description

datasets = pytest.importorskip("datasets", reason="datasets is not installed (pip install -e '.[data]')")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """The rows of `make_config` as messages in Parquet files, images in them; and a file with a chat template."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("data")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "arrow")
        config = make_config(folder, positions=256)
        rows = [row for row in json.loads((folder / "rows.json").read_text()) if "conversations" in row]
        table = [as_messages(row, folder) for row in rows]
        (folder / "table").mkdir()
        for number, begin in enumerate(range(0, len(table), 6)):
            datasets.Dataset.from_list(table[begin : begin + 6]).to_parquet(folder / f"table/train-{number}.parquet")
        (folder / "chat.jinja").write_text(QWEN2.replace("<|im_end|>", "</s>").replace("<|im_start|>", "<s>"))
        yield config


def as_messages(row: dict, folder: Path) -> dict:
    images = row.get("image", [])
    said = [
        dict(role="user" if message["from"] == "human" else "assistant", content=message["value"])
        for message in row["conversations"]
    ]
    return dict(messages=said, images=[dict(bytes=(folder / name).read_bytes(), path=None) for name in images])


def options(config: Path, **train) -> dict:
    found = dict(_delete_=True, type="HFDataset", path=str(config.parent / "table"), **train)
    chat = dict(_delete_=True, type="chat", chat_template=str(config.parent / "chat.jinja"), system="Be brief.")
    return {
        "data.train": found,
        "data.template": chat,
        "data.max_length": 160,
        "data.cache": False,
        "model.reconstruction": [],
        "evaluation": None,
        "stages.finetune.train": ["projector", "llm"],
        "stages.pretrain.train": ["projector"],
        "model.llm.arch": None,
    }


def final(work_dir: Path) -> dict:
    return load_file(newest(work_dir / "finetune/checkpoints") / "model.safetensors")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_on_a_stream_goes_on_bit_for_bit(config, tmp_path, workers):
    given = options(config, streaming=True, window=8) | {"data.num_workers": workers}
    train(config, tmp_path / "whole", given)
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(newest(tmp_path / "half/finetune/checkpoints"))
    (tmp_path / "half/finetune/done.json").unlink()
    train(config, tmp_path / "half", given)
    one, other = final(tmp_path / "whole"), final(tmp_path / "half")
    assert one.keys() == other.keys() and all((one[key] == other[key]).all() for key in one)
    if workers:
        return
    file = Path(given["data.template"]["chat_template"])
    moved = given | {"data.template": dict(given["data.template"], chat_template=str(shutil.copy(file, tmp_path)))}
    train(config, tmp_path / "half", moved)
    (tmp_path / file.name).write_text(file.read_text().replace("helpful", "kind"))
    data = Path(given["data.train"]["path"])
    elsewhere = given | {"data.train": dict(given["data.train"], path=str(data.rename(tmp_path / "elsewhere")))}
    shutil.rmtree(newest(tmp_path / "half/finetune/checkpoints"))
    (tmp_path / "half/finetune/done.json").unlink()
    train(config, tmp_path / "half", elsewhere)
    (tmp_path / "elsewhere").rename(data)
    other = final(tmp_path / "half")
    assert all((one[key] == other[key]).all() for key in one)
    with pytest.raises(ValueError, match="belongs to another configuration .data.chat_template"):
        train(config, tmp_path / "half", moved | {"schedule.steps": 4}, resume="auto")
    model = asvr.load(tmp_path / "whole", device="cpu")
    answer = model.chat(None, "what is 3?", max_new_tokens=4)
    folder = model.save_pretrained(tmp_path / "model")
    description = json.loads((folder / "asvr.json").read_text())
    assert description["template"]["chat_template"] == file.read_text()
    assert asvr.load(folder, device="cpu").chat(None, "what is 3?", max_new_tokens=4) == answer


def test_a_model_folder_names_no_file_as_its_chat_template(tmp_path):
    template = dict(type="chat", chat_template="/etc/passwd")
    described = dict(model=dict(type="VLM"), template=template, image_aspect="square")
    with pytest.raises(ValueError, match="template.chat_template='/etc/passwd': expected the Jinja template itself"):
        check_description(tmp_path / "asvr.json", described)


@pytest.fixture(scope="module")
def own() -> Pretrained:
    from transformers import AddedToken

    tokenizer = byte_level()
    backend = type(tokenizer.hf)(tokenizer_object=tokenizer.hf.backend_tokenizer, bos_token="<s>", eos_token="</s>")
    backend.add_tokens([AddedToken(text, special=True) for text in ("<|vision_start|>", "<|image_pad|>")])
    backend.add_tokens([AddedToken("<|vision_end|>", special=True)])
    backend.chat_template = QWEN2_VL
    text_tokenizer = type(byte_level()).__mro__[-2](backend)
    model = tiny_model(vocab_size=len(text_tokenizer), max_positions=256)
    return Pretrained(
        model=model, config={}, text_tokenizer=text_tokenizer, template="chat", image_aspect="square", precision=None
    )


def test_a_model_is_asked_with_messages_of_any_form(own, tmp_path):
    image = Image.new("RGB", (8, 8), "red")
    image.save(tmp_path / "a.png")
    file = io.BytesIO()
    image.save(file, "png")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    prompts = [dict(images=[image], messages=[{"from": "human", "value": "<image>\nwhat?"}])]
    for part in (
        *(dict(type="image", image=given) for given in (image, str(tmp_path / "a.png"), tmp_path / "a.png", url)),
        *(dict(type="image_url", image_url=dict(url=url)), dict(type="image", path=str(tmp_path / "a.png"))),
        dict(type="input_image", image_url=(tmp_path / "a.png").as_uri()),
    ):
        prompts.append(dict(messages=[dict(role="user", content=[part, dict(type="text", text="what?")])]))
    batch = own.batch(prompts)
    assert all(row == batch.input_ids_BT[0].tolist() for row in batch.input_ids_BT.tolist())
    assert (batch.pixels["encoder"] == batch.pixels["encoder"][:1]).all() and batch.num_images == len(prompts)
    assert len(set(own.generate(prompts, max_new_tokens=3))) == 1
    system = [dict(role="system", content="Be brief."), *prompts[1]["messages"]]
    assert own.batch([dict(messages=system)]).input_ids_BT.shape[1] > batch.input_ids_BT.shape[1]
    assert own.chat([image], "what?", max_new_tokens=3) == own.generate(prompts[:1], max_new_tokens=3)[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([dict(type="image_url", image_url=dict(url="https://x.org/a.png"))], "is a URL, and URLs are not read"),
        ([dict(type="video", video="a.mp4")], "prompt 0: message 0, part 0 has the type 'video'"),
        ([dict(type="image"), dict(type="text", text="q")], "1 <image> marks .* 0 images"),
    ],
)
def test_a_prompt_that_is_not_read_is_told(own, content, words):
    with pytest.raises(Refused, match=words) as error:
        own.generate([dict(messages=[dict(role="user", content=content)])])
    assert "\n" not in str(error.value)
