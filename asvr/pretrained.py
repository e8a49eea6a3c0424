"""A model in one folder: load it, ask it questions, save it, push it.

folder/
  asvr.json          the model's configuration, template and image settings, SHA-256 of the weights
  model.safetensors  all weights: encoder, projector, LLM, heads, visual tokenizers (split above 5 GB, with an index)
  text_tokenizer/    Hugging Face's tokenizer files
  training.json      how it was trained: data, recipe, results, machine (not of an imported model)
  README.md          the model card, made from these files
"""

import json
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import CommitInfo, save_torch_state_dict
from torch import nn

from asvr.base import compat
from asvr.base.files import new_folder, sha256_of
from asvr.base.hub_model import TRAINING_FILE, find_model
from asvr.base.precision import check_precision, computing_in
from asvr.base.text import short
from asvr.data.batch import Batch
from asvr.data.chat_template import portable_template
from asvr.data.collate import Collate
from asvr.data.conversation import encode_segments, segments_of
from asvr.data.images import open_image
from asvr.data.prompts import check_prompt
from asvr.data.templates import build_template
from asvr.data.text_tokenizer import TextTokenizer, save_text_tokenizer
from asvr.engine.finished import EMA, trained_with
from asvr.engine.stages import finished_model
from asvr.engine.training_facts import training_facts
from asvr.evaluation.generation import PromptTooLong, generate
from asvr.evaluation.maps import TargetMap, ValueMap, target_maps
from asvr.models.attention import set_kernel
from asvr.models.losses import linear_cross_entropy
from asvr.models.transforms import merge_transforms
from asvr.recipe.build import build_device
from asvr.recipe.config import MODEL_FILE, load_config
from asvr.recipe.model_file import FORMAT, build_described, check_description, import_modules, read_description
from asvr.recipe.model_folder import load_into, read_weights, why_no_model
from asvr.recipe.recipe import Recipe
from asvr.registry import TEXT_TOKENIZERS
from asvr.sharing.card import License, read_training, write_card
from asvr.sharing.push import push_folder

TEXT_TOKENIZER = "text_tokenizer"
NO_TEXT_TOKENIZER = "this model has no text tokenizer: import it again with --text-tokenizer FOLDER"

logger = logging.getLogger("asvr")


@dataclass(kw_only=True)
class Pretrained:
    """A model with everything that it needs to answer. ``asvr.load`` returns it.

    config: the config of the `VLM`, as in ``model`` of a config file. template, image_aspect: as in ``data``.
    precision: the precision of training, in which it also answers, see `computing_in`; None if it is not known.
    custom_imports: modules that register its own components. text_tokenizer: None if the model was imported from a
    checkpoint without one; such a model cannot be asked. training: the result of `training_facts`; None if it is not
    known.
    """

    model: nn.Module
    config: dict
    text_tokenizer: TextTokenizer | None
    template: str | dict
    image_aspect: str
    precision: str | None = None
    custom_imports: dict | None = None
    training: dict | None = None

    def to(self, device: str | torch.device) -> "Pretrained":
        self.model.to(device)
        return self

    def chat(self, image, question: str, *, max_new_tokens: int = 128, **kwargs) -> str:
        """Answer one question. image: a file or an image, a list of them, or None for text alone.

        Write ``<image>`` in the question where an image belongs. Otherwise images come first. kwargs go to
        transformers' ``generate``. The default is greedy decoding.
        """
        if not isinstance(question, str):
            raise ValueError(f"question {short(question)}: expected a text")
        images = [] if image is None else list(image) if isinstance(image, list | tuple) else [image]
        messages = [{"from": "human", "value": question}]
        return self.generate([dict(images=images, messages=messages)], max_new_tokens=max_new_tokens, **kwargs)[0]

    def generate(self, prompts: list[dict], *, max_new_tokens: int = 128, **kwargs) -> list[str]:
        """Answer several conversations at once. Each is ``dict(images=[...], messages=[...])``.

        The last message is a question. Messages have LLaVA's form, or the form of OpenAI and Hugging Face, whose parts
        can hold the images (see `asvr.data.messages`). Raises `PromptTooLong` if one is longer than the LLM allows.
        """
        batch = self.batch(prompts)
        with computing_in(self.precision, self.model.device):
            return generate(
                self.model,
                batch,
                self.text_tokenizer,
                template=build_template(self.template, self.text_tokenizer),
                max_new_tokens=max_new_tokens,
                **kwargs,
            )

    @torch.inference_mode()
    def score(self, conversations: list[dict]) -> list[tuple[float, bool]]:
        """Compute the loss of the given answers of each conversation.

        Returns a pair for each conversation: the loss of its answers in nats per token (the end of an answer is a token
        too), and whether each of these tokens is the most probable one. Raises `PromptTooLong` if a conversation is
        longer than the LLM allows.
        """
        model, batch = self.model.eval(), self.batch(conversations, answered=True)
        positions, longest = getattr(model.llm, "max_positions", None), batch.attention_mask_BT.shape[1]
        if positions is not None and longest > positions:
            raise PromptTooLong(f"a prompt of {longest} tokens with its answer: the LLM has {positions} positions")
        with computing_in(self.precision, model.device):
            embeds_BTH, _ = model.embed(batch)
            hidden = model.hidden(batch, embeds_BTH, {-1})[-1]
            row_S = batch.text_source_S // embeds_BTH.shape[1]
            found = []
            for row in range(len(conversations)):
                own = row_S == row
                hidden_SH = hidden[batch.text_source_S[own]]
                changes = getattr(model.llm, "logit_changes", {})
                loss, correct = linear_cross_entropy(hidden_SH, model.llm.lm_head, batch.text_target_S[own], **changes)
                found.append((loss.item() / len(hidden_SH), int(correct) == len(hidden_SH)))
        return found

    def token_maps(self, image) -> list[TargetMap | ValueMap]:
        """Show what each reconstruction target predicts at each visual token of an image.

        image: a file or an image. A target with codes gives a `TargetMap`. Any other target gives a `ValueMap` with the
        result of its method ``inspect``, or nothing if it has no such method. The model sees the image alone, without
        a question. Raises ``ValueError`` if the model has no reconstruction target, or if the file is no image.
        """
        if self.text_tokenizer is None:
            raise ValueError(NO_TEXT_TOKENIZER)
        if not self.model.targets:
            raise ValueError("this model has no reconstruction target, so there is no token map")
        return target_maps(self, open_image(image))

    def batch(self, prompts: list[dict], *, answered: bool = False) -> Batch:
        """The conversations of `generate` as a batch on the model's device. Each ends where its answer begins. With
        answered=True the answer is included."""
        if self.text_tokenizer is None:
            raise ValueError(NO_TEXT_TOKENIZER)
        template = build_template(self.template, self.text_tokenizer)
        collate = Collate(
            layout=self.model.layout,
            views=dict(encoder=self.model.encoder.transform),
            pad_id=self.text_tokenizer.pad_id,
            image_aspect=self.image_aspect,
        )
        items = [self._item(i, prompt, template, answered) for i, prompt in enumerate(prompts)]
        return collate(items).to(self.model.device)

    def _item(self, i: int, prompt: dict, template, answered: bool) -> dict:
        assert self.text_tokenizer is not None  # batch() refuses it
        images, messages = check_prompt(i, prompt)
        segments = segments_of(messages, len(images), template, prompt=not answered)
        input_ids, labels = encode_segments(segments, self.text_tokenizer)
        keys = [f"{i}-{j}" for j in range(len(images))]
        return dict(input_ids=input_ids, labels=labels, images=images, image_keys=keys, sample_id=f"prompt {i}")

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        max_shard_size: int | str = "5GB",
        license: str | None = None,
        license_name: str | None = None,
        license_link: str | None = None,
    ) -> Path:
        """Write the model to a folder. Returns its absolute path.

        Adapters are merged into the weights. If writing fails, no folder is left. max_shard_size: larger weights are
        split into several files. license: the licence in the model card, by its name on the Hub (``apache-2.0``). For
        any other licence give ``"other"`` with license_name and license_link. None: the card says "not stated". Raises
        ``ValueError`` if the folder exists or cannot be written.
        """
        terms = License(license=license, license_name=license_name, license_link=license_link)
        merge_transforms(self.model)
        folder = Path(folder).absolute()
        with new_folder(folder) as partial:
            self._write(partial, max_shard_size)
            write_card(partial, terms=terms, name=folder.name)
        return folder

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = "5GB",
        license: str | None = None,
        license_name: str | None = None,
        license_link: str | None = None,
        overwrite_card: bool = False,
    ) -> CommitInfo:
        """Upload the model to the Hugging Face Hub. Returns the commit, with ``commit_url`` (and ``pr_url`` for
        create_pr).

        repo_id: ``org/name``, or ``name`` for your own account. It is created if it does not exist. private: for a new
        repository; None: the default of the organisation. token: None: the one of ``hf auth login`` or ``HF_TOKEN``.
        revision: a branch; it is created if it does not exist. create_pr: open a pull request in place of a commit.
        overwrite_card: replace a model card on the Hub that a person wrote; the default keeps it. All other arguments
        are those of `save_pretrained`. The files are first written to a temporary folder (set ``TMPDIR`` to move it).
        Raises ``ValueError`` in one line if the Hub refuses or cannot be reached.
        """
        own = dict(license=license, license_name=license_name, license_link=license_link)
        with tempfile.TemporaryDirectory() as place:
            return push_folder(
                self.save_pretrained(Path(place) / "model", max_shard_size=max_shard_size, **own),
                repo_id,
                private=private,
                token=token,
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
                overwrite_card=overwrite_card,
            )

    def _write(self, folder: Path, max_shard_size: int | str) -> None:
        save_torch_state_dict(self.model.state_dict(), folder, max_shard_size=max_shard_size)
        compat.give_mode_of_new_files(*folder.glob("*.safetensors"))
        hashes = {file.name: sha256_of(file) for file in sorted(folder.glob("*.safetensors"))}
        if self.text_tokenizer is not None:
            save_text_tokenizer(self.text_tokenizer, folder / TEXT_TOKENIZER)
        description = dict(
            format=FORMAT,
            model=self.model.portable(self.config),
            template=portable_template(self.template),
            image_aspect=self.image_aspect,
            precision=self.precision,
            custom_imports=self.custom_imports,
            sha256=hashes,
        )
        (folder / MODEL_FILE).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
        if self.training is not None:
            (folder / TRAINING_FILE).write_text(json.dumps(self.training, indent=1) + "\n", encoding="utf-8")


def load(
    folder: str | Path,
    *,
    device: str = "auto",
    stage: str | None = None,
    precision: str | None = None,
    trust_custom_imports: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> Pretrained:
    """Load a trained model.

    folder: one of these four:

    - a folder that `Pretrained.save_pretrained` wrote
    - the work dir of a finished run
    - the averages that a stage of a run kept (``<work dir>/<stage>/ema``, see ``runtime.ema``)
    - a model of the Hugging Face Hub (``org/name`` or ``org/name@revision``)

    A folder of that name comes first, then ``$ASVR_MODEL_ZOO``, then the Hub. The newest version on the Hub is
    downloaded, as transformers and timm do. (Names in a config are downloaded only with ``ASVR_DOWNLOAD=1``.) With
    ``HF_HUB_OFFLINE=1``, or without a network, the Hub's cache is read. If the part before the slash is a folder here,
    the Hub is not asked: ``work_dirs/typo`` is a wrong path. Only data are downloaded (safetensors, JSON, the
    tokenizer's files), and no code of the model runs.

    revision: a branch, tag or commit of the model on the Hub. token: None: the one of ``hf auth login`` or
    ``HF_TOKEN``. cache_dir: None: the Hub's cache (``HF_HOME``). stage: a stage of a work dir; None: the last one.
    Adapters and other results of its ``model_transforms`` are merged into the weights, if that is possible. precision:
    the precision of answers, see `computing_in`; None: the precision of training. trust_custom_imports: import, and so
    run, the modules that a saved model names for its own components. The ``config.py`` of a work dir is Python and
    runs: load only your own runs.

    Raises ``ValueError`` in one line if the model is not found or is damaged.
    """
    if not isinstance(folder, str | Path):
        raise ValueError(f"asvr.load({short(folder)}): expected a folder's name")
    place = build_device(device)
    folder = find_model(
        folder,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        check=lambda found: _import_modules(found, read_description(found), trust_custom_imports),
    )
    if (folder / MODEL_FILE).is_file():
        if stage is not None:
            raise ValueError(f"{folder}: a saved model has no stages; leave stage={stage!r} out")
        found = _load_folder(folder, trust_custom_imports)
    elif (folder / "config.py").is_file():
        found = _load_work_dir(folder, stage)
    elif folder.name == EMA and ((of_stage := folder.absolute().parent).parent / "config.py").is_file():
        if stage not in (None, of_stage.name):
            raise ValueError(f"{folder}: averages of stage {of_stage.name!r}; leave stage={stage!r} out")
        found = _load_work_dir(of_stage.parent, of_stage.name, averaged=True)
    else:
        raise ValueError(why_no_model(folder))
    found.precision = check_precision(precision, "precision") or found.precision
    found.model.eval()
    return found.to(place)


def _load_folder(folder: Path, trust_custom_imports: bool) -> Pretrained:
    description = read_description(folder)
    _import_modules(folder, description, trust_custom_imports)
    check_description(folder / MODEL_FILE, description)
    model = build_described(description["model"], folder / MODEL_FILE)
    load_into(model, read_weights(folder, description), folder)
    if not model.all_causal:
        set_kernel(model.llm, "sdpa")  # its attention needs a mask of ours, and this kernel takes masks everywhere
    tokenizer = None
    if (folder / TEXT_TOKENIZER).is_dir():
        tokenizer = TEXT_TOKENIZERS.build(dict(type="HFTokenizer", name=str((folder / TEXT_TOKENIZER).absolute())))
    return Pretrained(
        model=model,
        config=description["model"],
        text_tokenizer=tokenizer,
        template=description["template"],
        image_aspect=description["image_aspect"],
        precision=check_precision(description.get("precision"), f"{folder / MODEL_FILE}: precision"),
        custom_imports=description.get("custom_imports"),
        training=read_training(folder),
    )


def _import_modules(folder: Path, description: dict, trust: bool) -> None:
    import_modules(folder / MODEL_FILE, description.get("custom_imports"), trust=trust)


def _load_work_dir(work_dir: Path, stage: str | None, *, averaged: bool = False) -> Pretrained:
    recipe = Recipe(load_config(work_dir / "config.py"))
    if stage is not None and stage not in recipe.stages:
        raise ValueError(f"{work_dir} has no stage {stage!r}: expected one of {list(recipe.stages)}")
    name = recipe.stage(stage).name
    tokenizer = _trained_tokenizer(recipe, name, work_dir)
    model, config = finished_model(recipe, name, tokenizer, work_dir, averaged=averaged)
    if all(hasattr(transform, "merge") for transform in model.transforms):
        merge_transforms(model)
    return Pretrained(
        model=model,
        config=config.model.to_dict(),
        text_tokenizer=tokenizer,
        template=config.data.template if isinstance(config.data.template, str) else config.data.template.to_dict(),
        image_aspect=config.data.image_aspect,
        precision=config.optim.precision,
        custom_imports=recipe.config.get("custom_imports"),
        training=training_facts(recipe, name, work_dir, averaged=averaged),
    )


def _trained_tokenizer(recipe: Recipe, stage: str, work_dir: Path):
    """The text tokenizer that a finished stage was trained with.

    It is the one that the work dir has. If that one differs, it is the config's own. (In work dirs of older versions
    `save_pretrained` of transformers lost a setting.)
    """
    folder = (work_dir / TEXT_TOKENIZER).absolute()
    expected = trained_with(work_dir, stage)["text_tokenizer.fingerprint"]
    for config in (dict(type="HFTokenizer", name=str(folder)), recipe.text_tokenizer):
        try:
            tokenizer = TEXT_TOKENIZERS.build(config)
        except ValueError as error:  # a tokenizer of a user's own class may write other files than Hugging Face's
            logger.info("%s", error)
            continue
        if tokenizer.fingerprint() == expected:
            return tokenizer
    raise ValueError(
        f"{folder}: neither this text tokenizer nor the one that the config names is the one that stage {stage!r} was "
        "trained with: their files have changed, or this version of transformers reads them otherwise"
    )
