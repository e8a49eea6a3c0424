# SigLIP-SO400M (27 x 27 visual tokens), a two-layer MLP and Vicuna-7B, without a reconstruction target.
text_tokenizer = dict(type="HFTokenizer", name="lmsys/vicuna-7b-v1.5")

model = dict(
    type="VLM",
    encoder=dict(
        type="HFVisionEncoder",
        name="google/siglip-so400m-patch14-384",
        layer=-2,
        dtype="bfloat16",
        arch=dict(
            model_type="siglip_vision_model",
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=27,
            num_attention_heads=16,
            image_size=384,
            patch_size=14,
        ),
    ),
    projector=dict(type="MLPProjector", layers=2),
    llm=dict(
        type="HFCausalLM",
        name="lmsys/vicuna-7b-v1.5",
        dtype="float32",
        activation_checkpointing="full",
        arch=dict(
            model_type="llama",
            vocab_size=32000,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            max_position_embeddings=4096,
            rms_norm_eps=1e-5,
            dtype="float16",
        ),
    ),
    reconstruction=[],
)
