# The semantic tokenizer of asvr_vicuna7b.py: 8 levels of 16,384 codes for SigLIP-SO400M's layer -2 (27 x 27 tokens).
# Its encoder is SigLIP itself. The paper used DualToken, whose encoder is a fine-tuned copy of SigLIP.
# ASVR_MODEL_ZOO=models asvr train-tokenizer tokenizers/siglip_so400m_rvq8
name = "asvr/siglip-so400m-rvq8"

tokenizer = dict(
    type="SemanticTokenizer",
    depth=8,
    codebook_size=16384,
    # The same entry as in _base_/models/siglip_so400m_vicuna7b.py: its weights, layer and dtype must agree.
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
)

data = dict(type="ImageFolder", root="data/LLaVA-Pretrain")

fit = dict(batch_size=64, num_workers=8, vectors_per_code=64, iterations=10)
