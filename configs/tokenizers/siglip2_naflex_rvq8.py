# The semantic tokenizer of examples/naflex.py: 8 levels of 16,384 codes for layer -2 of SigLIP2's NaFlex tower. It is
# fitted on the real patches of images, without padding.
# ASVR_MODEL_ZOO=models asvr train-tokenizer tokenizers/siglip2_naflex_rvq8
name = "asvr/siglip2-base-naflex-rvq8"

tokenizer = dict(
    type="SemanticTokenizer",
    depth=8,
    codebook_size=16384,
    # The same entry as in examples/naflex.py: its weights, layer, dtype and max_num_patches must agree.
    encoder=dict(
        type="NaFlexEncoder",
        name="google/siglip2-base-patch16-naflex",
        layer=-2,
        max_num_patches=256,
        dtype="bfloat16",
        arch=dict(
            model_type="siglip2_vision_model",
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            num_patches=256,
            patch_size=16,
        ),
    ),
)

data = dict(type="ImageFolder", root="data/LLaVA-Pretrain")

fit = dict(batch_size=64, num_workers=8, vectors_per_code=64, iterations=10)
