"""A model in one folder: ask it questions, save it, push it. `asvr.loading` loads it.

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
from asvr.base.hub_model import TRAINING_FILE
from asvr.base.precision import computing_in
from asvr.base.text import short
from asvr.data.batch import Batch
from asvr.data.chat_template import portable_template
from asvr.data.collate import Collate
from asvr.data.conversation import encode_segments, segments_of
from asvr.data.images import open_image
from asvr.data.prompts import check_prompt
from asvr.data.templates import build_template
from asvr.data.text_tokenizer import TextTokenizer, save_text_tokenizer
from asvr.evaluation.generation import PromptTooLong, generate
from asvr.evaluation.maps import TargetMap, ValueMap, target_maps
from asvr.models.losses import linear_cross_entropy
from asvr.models.transforms import merge_transforms
from asvr.recipe.config import MODEL_FILE
from asvr.recipe.model_file import FORMAT
from asvr.recipe.model_folder import TEXT_TOKENIZER
from asvr.sharing.card import License, write_card
from asvr.sharing.push import push_folder

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
