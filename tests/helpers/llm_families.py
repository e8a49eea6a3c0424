"""The LLM families of docs/guides/models.md, each with the switches of a real one; its sizes alone are tiny."""

SIZES = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, max_position_embeddings=64)
SPECIAL = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
GROUPED = dict(SIZES, num_attention_heads=4, num_key_value_heads=2, **SPECIAL)
ALTERNATING = ["sliding_attention", "full_attention"]
LLAMA3_ROPE = dict(
    rope_type="llama3",
    rope_theta=500000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
GEMMA3_ROPE = dict(
    sliding_attention=dict(rope_type="default", rope_theta=10000.0),
    full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1000000.0),
)
PARTIAL = dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5)
PHI3_ROPE = dict(  # Phi-3's 128k models
    rope_type="longrope",
    rope_theta=10000.0,
    short_factor=[1.0, 1.1],
    long_factor=[1.0, 4.0],
    original_max_position_embeddings=32,
    partial_rotary_factor=0.5,
)
YARN = dict(rope_type="yarn", rope_theta=150000.0, factor=4.0, original_max_position_embeddings=16, truncate=False)

# Samples of a packed row are kept apart.
PACKED = {
    "llama2": dict(GROUPED, model_type="llama", num_key_value_heads=4),  # and Vicuna
    "llama3": dict(GROUPED, model_type="llama", rope_parameters=LLAMA3_ROPE),
    "llama3.2": dict(GROUPED, model_type="llama", rope_parameters=LLAMA3_ROPE, tie_word_embeddings=True, head_dim=16),
    "mistral": dict(GROUPED, model_type="mistral", head_dim=16, sliding_window=3),
    "qwen2.5": dict(GROUPED, model_type="qwen2", tie_word_embeddings=True),
    "qwen3": dict(GROUPED, model_type="qwen3", head_dim=16, tie_word_embeddings=True),
    "gemma3": dict(
        GROUPED,
        model_type="gemma3_text",
        head_dim=16,
        query_pre_attn_scalar=24,
        sliding_window=3,
        layer_types=ALTERNATING,
        rope_parameters=GEMMA3_ROPE,
    ),
    "gemma4": dict(  # its global layers have wider heads
        GROUPED,
        model_type="gemma4_text",
        head_dim=8,
        global_head_dim=16,
        sliding_window=3,
        layer_types=ALTERNATING,
        hidden_size_per_layer_input=0,
    ),
    "phi3": dict(GROUPED, model_type="phi3", sliding_window=3, rope_parameters=PARTIAL),
    "phi3-128k": dict(
        GROUPED, model_type="phi3", sliding_window=3, rope_parameters=PHI3_ROPE, original_max_position_embeddings=32
    ),
    "smollm2": dict(GROUPED, model_type="llama", tie_word_embeddings=True),
    "smollm3": dict(GROUPED, model_type="smollm3", tie_word_embeddings=True, no_rope_layers=[1, 0]),
    "olmo2": dict(GROUPED, model_type="olmo2"),
    "granite": dict(
        GROUPED,
        model_type="granite",
        embedding_multiplier=12.0,
        logits_scaling=8.0,
        residual_multiplier=0.22,
        attention_multiplier=0.1,
        tie_word_embeddings=True,
    ),
    "cohere": dict(GROUPED, model_type="cohere", logit_scale=0.0625, use_qk_norm=True),
    "cohere2": dict(
        GROUPED, model_type="cohere2", logit_scale=0.25, sliding_window=3, layer_types=ALTERNATING, head_dim=16
    ),
}
# Padded rows alone, with what is said where `data.pack` asks for more.
CAPPED = "does not work with the attention kernels .*attn_logit_softcapping=50.0 caps the logits of its attention"
RECURRENT, NO_KERNEL = "lets a sample of a row see the one before", "does not work with the attention kernels"
SCAN = dict(hidden_size=32, num_hidden_layers=2, state_size=8, **SPECIAL)
PADDED = {
    "gemma2": (
        dict(
            GROUPED,
            model_type="gemma2",
            head_dim=16,
            query_pre_attn_scalar=24,
            sliding_window=3,
            layer_types=ALTERNATING,
            attn_logit_softcapping=50.0,
            final_logit_softcapping=30.0,
        ),
        CAPPED,
    ),
    "gpt-oss": (
        dict(
            GROUPED,
            model_type="gpt_oss",
            head_dim=16,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=3,
            layer_types=ALTERNATING,
            rope_parameters=YARN,
        ),
        NO_KERNEL,
    ),
    "mamba": (dict(SCAN, model_type="mamba"), NO_KERNEL),
    "mamba2": (dict(SCAN, model_type="mamba2", num_heads=8, head_dim=8, n_groups=2, chunk_size=4), NO_KERNEL),
    "falcon-mamba": (dict(SCAN, model_type="falcon_mamba"), NO_KERNEL),
    "jamba": (
        dict(
            GROUPED,
            model_type="jamba",
            num_experts=2,
            num_experts_per_tok=1,
            attn_layer_period=2,
            attn_layer_offset=1,
            mamba_d_state=8,
        ),
        RECURRENT,
    ),
    "qwen3-next": (
        dict(
            GROUPED,
            model_type="qwen3_next",
            head_dim=16,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
            layer_types=["linear_attention", "full_attention"],
        ),
        RECURRENT,
    ),
    "lfm2": (dict(GROUPED, model_type="lfm2", layer_types=["conv", "full_attention"]), RECURRENT),
    "recurrent-gemma": (
        dict(
            model_type="recurrent_gemma",
            hidden_size=32,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            lru_width=32,
            logits_soft_cap=3.0,
            **SPECIAL,
        ),
        RECURRENT,
    ),
}
FAMILIES = PACKED | {name: arch for name, (arch, _) in PADDED.items()}
# As LlavaForConditionalGeneration.
EXPORTED = (
    "llama2",
    "llama3",
    "llama3.2",
    "mistral",
    "qwen2.5",
    "qwen3",
    "gemma3",
    "phi3",
    "phi3-128k",
    "smollm2",
    "smollm3",
    "olmo2",
)
