"""A Hugging Face causal LM with a small interface.

Legend: ``B`` rows, ``T`` tokens in a row, ``H`` LLM width, ``V`` vocabulary.
"""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig

from asvr.base import compat
from asvr.base.log_once import log_once
from asvr.data.batch import Segments
from asvr.models.attention import PREFIX, eager_only, no_mask
from asvr.models.checkpointing import AUTO, check_mode, settings
from asvr.models.component import Component
from asvr.models.hf import (
    arch_of,
    build_deferred,
    build_random,
    find_folder,
    load_strict,
    materialise,
    read_config,
    require_causal,
    resolve_dtype,
)
from asvr.models.logits import logit_changes
from asvr.models.recurrence import check_recurrence
from asvr.models.visual_attention import AttentionRule
from asvr.registry import LLMS


def _in_autocast_precision(module, inputs: tuple, embeds: Tensor) -> Tensor:
    """Cast the embeddings to the dtype of autocast, and with them the residual stream, in training and in generation.

    This halves memory and memory traffic. It is also what a model with weights in that dtype computes, such as the
    released code's."""
    device = embeds.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        return embeds.to(torch.get_autocast_dtype(device))
    return embeds


def _max_positions(config) -> int | None:
    """Return the number of positions of a model, with scaled rotary embeddings taken into account. None: no limit."""
    positions = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    factor = rope.get("factor") if isinstance(rope, dict) else None
    if positions is None or not factor:
        return positions
    return max(positions, int(factor * (rope.get("original_max_position_embeddings") or positions)))


@contextmanager
def _input_of(module: torch.nn.Module) -> Iterator[list[Tensor]]:
    """Collect the inputs of a module's calls inside a ``with`` block."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()


@LLMS.register_module()
class HFCausalLM(Component):
    """Any causal LLM of transformers that ``AutoModelForCausalLM`` can build.

    name: a folder or model name (see ``asvr.base.hub``). None builds ``arch`` with random weights.
    arch: fields of the model's configuration, with ``model_type``. If there is a folder, its configuration is used.
    dtype: dtype of the weights: ``float32``, ``bfloat16`` or ``float16``.
    vocab_size: the number of embeddings that the text tokenizer needs (`TextTokenizer.num_ids`). A model without
        ``name`` gets this vocabulary size. A model with weights must have at least this size.
    activation_checkpointing: ``none``, ``selective``, ``full`` or ``auto``, see `asvr.models.checkpointing`.
    defer: do not read the weights until `materialise` is called. This works if the folder has safetensors with the
        model's own keys.
    """

    def __init__(
        self,
        *,
        name: str | None = None,
        arch: dict | None = None,
        dtype: str = "float32",
        activation_checkpointing: str = "none",
        vocab_size: int | None = None,
        load_weights: bool = True,
        defer: bool = False,
    ):
        super().__init__()
        folder = find_folder(name, load_weights, "LLM", arch)
        from_scratch = name is None and vocab_size is not None
        config = read_config(folder, arch, name, **(dict(vocab_size=vocab_size) if from_scratch else {}))
        if from_scratch and (arch or {}).get("vocab_size", config.vocab_size) != config.vocab_size:
            log_once(
                logging.WARNING,
                "model.llm.arch.vocab_size=%r is not used: an LLM without `name` gets as many embeddings as the text "
                "tokenizer needs",
                arch["vocab_size"],
            )
        require_causal(config, name or "of `arch`")
        self.logit_changes = logit_changes(config, name or config.model_type)
        if vocab_size is not None and vocab_size > config.vocab_size:
            raise ValueError(
                f"LLM {name or config.model_type} has {config.vocab_size} embeddings, but the text tokenizer needs "
                f"{vocab_size} for its ids up to {vocab_size - 1}: they do not belong together (check "
                "text_tokenizer.name against model.llm.name)"
            )
        if folder is not None and load_weights:
            given = AutoModelForCausalLM, folder, config, resolve_dtype(dtype), ("model.rotary_emb",)
            self.model = (build_deferred(*given) if defer else None) or load_strict(*given)
            self.source, self.folder = name, folder
        else:
            self.model = build_random(AutoModelForCausalLM, config, resolve_dtype(dtype), name or "llm.arch")
        if not any(part is self.lm_head for part in self.model.children()):  # bert has a transform before it
            raise ValueError(
                f"LLM {name or config.model_type}: {type(self.model).__name__} has its LM head inside another part, "
                "which the text loss would leave out: use a decoder, such as a llama"
            )
        if eager_only(config) is not None:
            self.model.set_attn_implementation("eager")
        self.activation_checkpointing = activation_checkpointing
        mode = check_mode(activation_checkpointing, "llm.activation_checkpointing", auto=True)
        if mode != "none":
            compat.enable_activation_checkpointing(self.model, settings("full" if mode == AUTO else mode))
        self.model.get_input_embeddings().register_forward_hook(_in_autocast_precision)
        # The folder's own defaults (a repetition penalty, sampling) are dropped: they would change greedy decoding.
        self.model.generation_config = GenerationConfig()
        self.hidden_size = config.hidden_size
        self.vocab_size = config.vocab_size
        self.num_layers = config.num_hidden_layers
        self.max_positions = _max_positions(config)

    def materialise(self, device: torch.device) -> None:
        """Read deferred weights. With FSDP, each process reads only its own shards."""
        if next(self.model.parameters()).is_meta:
            materialise(self.model, self.folder, device)

    @property
    def lm_head(self) -> torch.nn.Module:
        return self.model.get_output_embeddings()

    @property
    def final_norm(self) -> torch.nn.Module | None:
        """The norm after the last block: the last norm among the decoder's direct children. None if there is none."""
        parts = [part for part in self.model.get_decoder().children() if "norm" in type(part).__name__.lower()]
        return parts[-1] if parts else None

    @property
    def blocks(self) -> list[torch.nn.Module]:
        """The transformer blocks in order: the modules that transformers does not split between devices."""
        kinds = set(self.model._no_split_modules or ())  # FSDP makes a block an instance of a subclass: look at the mro
        found = [m for m in self.model.modules() if any(base.__name__ in kinds for base in type(m).__mro__)]
        inner = {id(part) for module in found for part in module.modules() if part is not module}
        return [module for module in found if id(module) not in inner]  # Mamba also names the mixer inside a block

    @property
    def switches_blocks(self) -> bool:
        """Whether the activation checkpointing of each block can be switched by itself."""
        return all(hasattr(block, "gradient_checkpointing") for block in self.blocks)

    def keep_activations(self, count: int) -> int:
        """Let the last ``count`` blocks keep all activations, and recompute the others. Returns how many keep them.

        The backward pass frees those of the last blocks first, before it recomputes a block. Blocks that transformers
        cannot switch one by one are all recomputed, unless all keep them.
        """
        if self.switches_blocks:
            for i, block in enumerate(self.blocks):
                block.gradient_checkpointing = i < self.num_layers - count
        elif count == self.num_layers:
            compat.disable_activation_checkpointing(self.model)
        else:
            return 0
        return count

    def portable(self, config: dict) -> dict:
        return dict(super().portable(config), arch=arch_of(self.model.config))

    def embed(self, input_ids: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(input_ids)

    def hidden(
        self,
        embeds_BTH: Tensor,
        taps: set[int] = frozenset(),
        mask_BT: Tensor | None = None,
        segments: Segments | None = None,
        rule: AttentionRule | None = None,
    ) -> dict[int, Tensor]:
        """Run the model and return hidden_BTH by tap.

        Tap -1 is the state after the final norm, 0 the input of the first block, and ``k`` the output of the k-th
        block. For the last block too, this is its output before the final norm. (The last of transformers'
        ``hidden_states`` is after the norm.)

        mask_BT: True on real tokens, for rows that are padded on the left. Rows padded on the right need no mask,
        because with causal attention no real token sees the padding. segments: the samples of a packed row. rule: which
        tokens see which others; None: attention is causal.
        """
        inner, last = taps - {-1, self.num_layers}, self.num_layers in taps
        if rule is not None:
            layout = self._ruled(embeds_BTH, mask_BT, rule)
        elif mask_BT is not None:
            layout = dict(attention_mask=mask_BT.long(), position_ids=_places_of(mask_BT))
        elif self.own_kernels:
            positions_BT = torch.arange(embeds_BTH.shape[1], device=embeds_BTH.device)[None]
            layout = dict(attention_mask=no_mask(embeds_BTH), position_ids=positions_BT.expand(embeds_BTH.shape[:2]))
        else:
            layout = {}
        if segments is not None:
            assert self.own_kernels, "packed rows need `use_attention`"
            layout |= dict(position_ids=segments.position_ids_BT, segments=segments)
        read = {self.num_layers: self.final_norm} if last else {}
        if self.model._is_stateful:  # for some recurrent families transformers' states begin after the first block
            read |= {tap: self.blocks[tap] for tap in inner}
        with ExitStack() as stack:
            seen = {tap: stack.enter_context(_input_of(module)) for tap, module in read.items()}
            out = self.model.get_decoder()(
                inputs_embeds=embeds_BTH, use_cache=False, output_hidden_states=bool(inner - read.keys()), **layout
            )
        states = {-1: out.last_hidden_state, **{tap: out.hidden_states[tap] for tap in inner - read.keys()}}
        return states | {tap: inputs[-1].view_as(embeds_BTH) for tap, inputs in seen.items()}

    def _ruled(self, embeds_BTH: Tensor, mask_BT: Tensor | None, rule: AttentionRule) -> dict:
        """Return the arguments of the decoder that pass an attention rule on to its kernel."""
        assert self.own_kernels, "an attention rule needs `use_attention`"
        if mask_BT is not None:
            positions_BT = _places_of(mask_BT)
        else:
            positions_BT = torch.arange(embeds_BTH.shape[1], device=embeds_BTH.device).expand(embeds_BTH.shape[:2])
        return dict(attention_mask=no_mask(embeds_BTH), position_ids=positions_BT, rule=rule)

    @torch.inference_mode()
    def attention(self, embeds_BTH: Tensor, first: int, rule: AttentionRule | None = None) -> list[Tensor]:
        """Return the attention weights (B, heads, T - first, T) of each layer, for the positions from ``first`` on.

        The rows have no padding, and the positions from ``first`` on are text. Only transformers' own ``eager`` kernel
        returns attention weights. It runs on these positions; the chosen kernel runs on those before them. rule: the
        attention rule of the rows, see `hidden`.

        Raises ``ValueError`` if a layer has no attention weights, such as a recurrent one.
        """
        decoder, chosen = self.model.get_decoder(), self.model.config._attn_implementation
        cache = {compat.cache_argument(decoder): DynamicCache(config=self.model.config)}
        if first:
            ruled = {} if rule is None else self._ruled(embeds_BTH[:, :first], None, rule.first(first))
            decoder(inputs_embeds=embeds_BTH[:, :first], use_cache=True, **cache, **ruled)
        self.model.set_attn_implementation("eager")
        try:
            out = decoder(inputs_embeds=embeds_BTH[:, first:], use_cache=True, output_attentions=True, **cache)
        finally:
            self.model.set_attn_implementation(chosen)
        layers = [weights for weights in getattr(out, "attentions", None) or () if weights is not None]
        if len(layers) != self.num_layers:
            raise ValueError(
                f"only {len(layers)} of this LLM's {self.num_layers} layers have attention weights; expected all"
            )
        # A layer with a sliding window has no weights for the first positions: they are set to 0.
        return [F.pad(weights, (embeds_BTH.shape[1] - weights.shape[-1], 0)) for weights in layers]

    @property
    def own_kernels(self) -> bool:
        """Whether it uses a kernel that `asvr.models.attention.use_attention` has chosen."""
        return self.model.config._attn_implementation.startswith(PREFIX)

    @torch.inference_mode()
    def generate(
        self, embeds_BTH: Tensor, attention_mask_BT: Tensor, *, rule: AttentionRule | None = None, **kwargs
    ) -> Tensor:
        """Return the new token ids (B, T') for left-padded prompts.

        rule: the attention rule of the prompts, see `hidden`. Other keywords go to transformers' ``generate``.

        Raises ``ValueError`` for a recurrent LLM whose state in transformers is changed by padding, or is not carried
        from token to token.
        """
        if self.model._is_stateful:
            check_recurrence(self, padded=not attention_mask_BT.all())
        given = dict(inputs_embeds=embeds_BTH, attention_mask=attention_mask_BT, **kwargs)
        if rule is not None:
            given |= self._read(embeds_BTH, attention_mask_BT, rule, copies=_copies(kwargs))
        # With FSDP, transformers would make all processes generate together.
        return self.model.generate(**dict(dict(synced_gpus=False), **given))

    def _read(self, embeds_BTH: Tensor, mask_BT: Tensor, rule: AttentionRule, *, copies: int) -> dict:
        """Read prompts with an attention rule, and return the cache from which transformers' ``generate`` goes on.

        ``generate`` reads the last token of a prompt itself, with causal attention. For text, and for the last token of
        an image, this is the same. Raises ``ValueError`` if a prompt ends with an image and a layer has a sliding
        window.
        """
        decoder, config = self.model.get_decoder(), self.model.config
        name, cache = compat.cache_argument(decoder), DynamicCache(config=config)
        ends_with_image = bool((rule.image_BT[:, -1] >= 0).any())
        if not ends_with_image:
            embeds_BTH, mask_BT, rule = embeds_BTH[:, :-1], mask_BT[:, :-1], rule.first(embeds_BTH.shape[1] - 1)
        elif getattr(config, "sliding_window", None) is not None:
            raise ValueError(
                "a prompt ends with an image whose tokens see each other, which does not work with this LLM's sliding "
                "window: put text after the image"
            )
        decoder(inputs_embeds=embeds_BTH, use_cache=True, **{name: cache}, **self._ruled(embeds_BTH, mask_BT, rule))
        if ends_with_image:
            cache.crop(-1)
        if copies > 1:
            cache.batch_repeat_interleave(copies)
        return {name: cache}


def _places_of(mask_BT: Tensor) -> Tensor:
    """Return the position ids of rows that are padded on the left."""
    return (mask_BT.cumsum(1) - 1).clamp(min=0)


def _copies(kwargs: dict) -> int:
    """Return how many rows ``generate`` makes of each prompt."""
    return max(kwargs.get("num_beams") or 1, kwargs.get("num_return_sequences") or 1)
