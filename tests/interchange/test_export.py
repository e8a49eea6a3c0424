"""An exported model answers in plain transformers as it does here."""

import pytest
import torch
from data_helpers import byte_level, chat, sentencepiece_like
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaNextForConditionalGeneration

import asvr
from asvr.data.templates import IMAGE_MARK, build_template
from asvr.interchange.chat_templates import chat_template
from asvr.interchange.convert import show
from asvr.interchange.export import build_processor, export_llava
from asvr.pretrained import Pretrained
from asvr.registry import MODELS, TEMPLATES

TOWER = dict(
    hidden_size=24, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14
)
LLM = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    initializer_range=0.3,
)


def legacy():
    """As the tokenizer.json of Llama-2, Vicuna and Mistral: a space in front of every piece of text."""
    return sentencepiece_like("always")


# encoder's and LLM's model_type, template, tokenizer
CASES = [
    ("siglip_vision_model", "llama", "vicuna_v1", legacy),
    ("siglip_vision_model", "mistral", "mistral", legacy),
    ("siglip_vision_model", "qwen2", "chatml", byte_level),
    ("clip_vision_model", "llama", "llama_2", legacy),
    ("clip_vision_model", "llama", "vicuna_v1", sentencepiece_like),
    ("clip_vision_model", "mistral", "mistral", legacy),
    ("clip_vision_model", "qwen2", dict(type="vicuna_v1", system=""), byte_level),
]


def tiny(tower: str, llm: str, template, tokenizer, changes: dict | None = None) -> Pretrained:
    torch.manual_seed(0)
    text_tokenizer = tokenizer()
    config = dict(
        type="VLM",
        encoder=dict(type="HFVisionEncoder", layer=-2, arch=dict(TOWER, model_type=tower)),
        projector=dict(type="MLPProjector"),
        llm=dict(type="HFCausalLM", arch=dict(LLM, model_type=llm, vocab_size=len(text_tokenizer) + 2)),
        reconstruction=[],
    )
    config |= changes or {}
    model = MODELS.build(config).eval()
    with torch.no_grad():
        model.llm.lm_head.weight.mul_(3)  # so that the answers are no ties
    return Pretrained(
        model=model, config=config, text_tokenizer=text_tokenizer, template=template, image_aspect="square"
    )


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    gradient = torch.arange(40 * 30 * 3).view(40, 30, 3).remainder(251).byte().numpy()
    return [Image.fromarray(gradient), Image.new("RGB", (28, 28), "teal")]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_transformers_computes_and_answers_the_same(case, pictures, tmp_path):
    source = tiny(*case)
    folder = export_llava(source, tmp_path / "out")
    assert "(llava-hf) is not imported by this tool" in show(folder)
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    for count in range(3):
        question = "what color is the house?"
        content = [
            *[dict(type="image", image=picture) for picture in pictures[:count]],
            dict(type="text", text=question),
        ]
        inputs = processor.apply_chat_template(
            [dict(role="user", content=content)],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        prompt = processor.apply_chat_template([dict(role="user", content=content)], add_generation_prompt=True)
        again = processor(text=prompt, images=pictures[:count] or None, return_tensors="pt")
        assert torch.equal(again["input_ids"], inputs["input_ids"]), "BOS comes once, with the template"
        batch = source.batch([dict(images=pictures[:count], messages=[{"from": "human", "value": question}])])
        with torch.no_grad():
            embeds, _ = source.model.embed(batch)
            ours = source.model.llm.lm_head(source.model.llm.hidden(embeds)[-1])
            theirs = model(**inputs).logits[..., : ours.shape[-1]]
        assert torch.allclose(ours, theirs, atol=1e-5 * ours.abs().max().item()), (ours - theirs).abs().max()
        written = model.generate(**inputs, max_new_tokens=12)[0, inputs["input_ids"].shape[1] :]
        answer = processor.tokenizer.decode(written, skip_special_tokens=True).strip()
        assert answer == source.chat(pictures[:count] or None, question, max_new_tokens=12) and answer


def inexpressible(part: str) -> dict:
    return dict(
        encoder=dict(encoder=dict(type="TimmEncoder", model="resnet18", image_size=64)),
        layers=dict(
            encoder=dict(type="HFVisionEncoder", layer=[2, 1], arch=dict(TOWER, model_type="clip_vision_model"))
        ),
        projector=dict(projector=dict(type="LinearProjector")),
        overview=dict(layout=dict(type="AnyRes", overview=False)),
        separators=dict(layout=dict(type="AnyRes", newline=False, unpad=False)),
        first=dict(encoder=dict(type="HFVisionEncoder", layer=0, arch=dict(TOWER, model_type="clip_vision_model"))),
        norm=dict(projector=dict(type="MLPProjector", norm=True)),
        positions=dict(projector=dict(type="MLPProjector", positions=True)),
        llm=dict(llm=dict(type="HFCausalLM", arch=dict(LLM, model_type="gemma", head_dim=8))),
    )[part]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("encoder", "its encoder is TimmEncoder"),
        ("layers", r"its encoder gives the features of several layers \(\[2, 1\]\)"),
        ("projector", "its projector is LinearProjector"),
        ("positions", "its projector adds positions"),
        ("norm", "its projector is MLPProjector of LayerNorm, Linear, GELU, Linear; LLaVA has"),
        ("overview", "its layout has overview=False; LLaVA-NeXT always has an overview, unpadding and newlines"),
        ("separators", "its layout has unpad=False, newline=False; LLaVA-NeXT always has"),
        ("first", "patch embeddings .layer 0."),
        ("llm", r"its LLM is HFCausalLM \(gemma\)"),
    ],
)
def test_what_llava_cannot_express_is_refused_and_has_our_own_format(part, message, tmp_path):
    source = tiny(*CASES[-1], inexpressible(part))
    with pytest.raises(ValueError, match=f"cannot be a LLaVA folder: .*{message}.*--format asvr"):
        export_llava(source, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    again = asvr.load(source.save_pretrained(tmp_path / "own"), device="cpu")
    assert again.chat(None, "what color?", max_new_tokens=5) == source.chat(None, "what color?", max_new_tokens=5)


@pytest.mark.parametrize(
    ("change", "message"),
    [(dict(template="plain"), "Plain has no chat form")],
)
def test_settings_without_a_counterpart_are_refused(change, message, tmp_path):
    source = tiny(*CASES[0])
    for key, value in change.items():
        setattr(source, key, value)
    with pytest.raises(ValueError, match=message):
        export_llava(source, tmp_path / "out")
    assert not list(tmp_path.iterdir())


SIZES = [(28, 28), (100, 20), (13, 90), (5, 7), (300, 2), (31, 30), (57, 57), (3000, 1)]


@pytest.mark.parametrize(
    ("case", "grids"), [(CASES[1], [(1, 2), (2, 1), (2, 2)]), (CASES[6], [(1, 1), (3, 1), (1, 4)])]
)
def test_tiles_are_those_of_llava_next(case, grids, tmp_path):
    """Of images of any shape: ids, pixels, logits and answers. Cells of padding are left out alike."""
    tower = dict(TOWER, image_size=56, model_type=case[0])
    changes = dict(encoder=dict(type="HFVisionEncoder", arch=tower), layout=dict(type="AnyRes", grids=grids))
    source = tiny(*case, changes)
    folder = export_llava(source, tmp_path / "out")
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    model, info = LlavaNextForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()) and model.config.image_grid_pinpoints == [[56 * r, 56 * c] for r, c in grids]
    assert torch.equal(model.model.image_newline, source.model.separators.weight[0])
    noise = torch.randint(0, 256, (90, 3000, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    for width, height in SIZES:
        image, question = Image.fromarray(noise[:height, :width]), "what color is the house?"
        chat = [dict(role="user", content=[dict(type="image"), dict(type="text", text=question)])]
        prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
        inputs = processor(text=prompt, images=[image], return_tensors="pt")
        batch = source.batch([dict(images=[image], messages=[{"from": "human", "value": question}])])
        assert torch.equal(inputs["pixel_values"][0], batch.pixels["encoder"]), (width, height)
        with torch.no_grad():
            embeds, _ = source.model.embed(batch)
            ours = source.model.llm.lm_head(source.model.llm.hidden(embeds)[-1])
            theirs = model(**inputs).logits[..., : ours.shape[-1]]
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5 * ours.abs().max().item())
    assert "`LlavaNextForConditionalGeneration` and `AutoProcessor`" in (folder / "README.md").read_text()


class Bound:
    """A text tokenizer's own chat template, as `chat_template` is given it."""

    stop, variables, system, image, image_parts = "<|im_end|>", dict(shout=True), "be brief", IMAGE_MARK, False
    jinja = (
        "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] + ('!' if shout else '') + '\\n' }}"
        "{{ message['content'] + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )


def test_a_text_tokenizers_own_chat_template_is_kept():
    """It is given texts with image marks where it takes no image parts, and the system message of training."""
    processor, _ = build_processor(tiny(*CASES[2]))
    processor.chat_template = chat_template(Bound(), "<s>", "</s>")
    content = [dict(type="image"), dict(type="text", text="what is it? ")]
    told = processor.apply_chat_template([dict(role="user", content=content)], add_generation_prompt=True)
    bos = processor.tokenizer.bos_token
    start = f"{bos}<|im_start|>system!\nbe brief<|im_end|>\n<|im_start|>user!\n"
    assert told == f"{start}<image>\nwhat is it? <|im_end|>\n<|im_start|>assistant\n"
    own = [dict(role="system", content="sing"), dict(role="user", content="what is it?")]
    told = processor.apply_chat_template(own)
    assert told == f"{bos}<|im_start|>system!\nsing<|im_end|>\n<|im_start|>user!\nwhat is it?<|im_end|>\n"


@pytest.mark.skipif(TEMPLATES.get("chat") is None, reason="this version has no template 'chat'")
@pytest.mark.parametrize("parts", [False, True])
def test_a_model_with_its_tokenizers_chat_template_is_exported(parts, pictures, tmp_path):
    """Whether the template takes texts alone or image parts too."""
    written = "{{ message['content'] | trim }}"
    if parts:
        written = (
            "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
            "{% for part in message['content'] %}"
            "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}"
        )
    source = tiny(*CASES[2])
    source.template = dict(
        type="chat", chat_template=Bound.jinja.replace("{{ message['content'] + '", written + "{{ '")
    )
    processor = AutoProcessor.from_pretrained(export_llava(source, tmp_path / "out"), backend="pil")
    content = [dict(type="image"), dict(type="text", text="what is it?")]
    prompt = processor.apply_chat_template([dict(role="user", content=content)], add_generation_prompt=True)
    theirs = processor(text=prompt, images=pictures[:1], return_tensors="pt")["input_ids"][0].tolist()
    batch = source.batch([dict(images=pictures[:1], messages=chat("<image>\nwhat is it?"))])
    assert theirs == [len(source.text_tokenizer) if token < 0 else token for token in batch.input_ids_BT[0].tolist()]


def test_a_chat_template_that_writes_images_in_another_way_is_refused():
    own = Bound()
    own.image_parts, own.image = True, "<|image_pad|>"
    with pytest.raises(ValueError, match="writes '<|image_pad|>' at the place of an image") as error:
        chat_template(own, "<s>", "</s>")
    assert "\n" not in str(error.value)


def test_several_turns_read_as_in_training(tmp_path):
    for case in CASES:
        source = tiny(*case)
        processor, image_id = build_processor(source)
        talk = chat(
            "<image>\nwhat color is the car?", "it is blue", "how many dogs are there?", "two", "and the house?"
        )
        item = dict(images=[Image.new("RGB", (9, 9))], messages=talk)
        ids = source._item(0, item, build_template(source.template), answered=False)
        messages = [dict(role="user" if m["from"] == "human" else "assistant", content=m["value"]) for m in talk]
        prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
        theirs = processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert theirs == [image_id if token < 0 else token for token in ids["input_ids"]], case


def test_codes_in_the_vocabulary_stay_behind(tmp_path):
    tokenizer = dict(type="SemanticTokenizer", depth=1, codebook_size=8)
    entry = dict(name="word", type="SharedVocabularyTarget", tokenizer=tokenizer, shift=1)
    source = tiny("siglip_vision_model", "llama", "vicuna_v1", legacy, dict(reconstruction=[entry]))
    words = source.model.llm.lm_head.weight
    theirs = LlavaForConditionalGeneration.from_pretrained(export_llava(source, tmp_path / "out"))
    exported = theirs.lm_head.weight
    assert torch.equal(exported[: len(words)], words)
    # Engines that do not read suppress_tokens never choose it: its logit is the mean of the others.
    torch.testing.assert_close(
        exported[len(words) :], words.mean(0, keepdim=True).expand(len(exported) - len(words), -1)
    )
    assert len(exported) == theirs.config.text_config.vocab_size
