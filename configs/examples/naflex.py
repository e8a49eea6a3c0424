# ASVR on images in their own resolution: SigLIP2's NaFlex tower with at most 256 visual tokens for an image. The
# tokenizer of its codes is configs/tokenizers/siglip2_naflex_rvq8.py.
# asvr train examples/naflex --dry-run
_base_ = ["../asvr_vicuna7b.py"]

model = dict(
    encoder=dict(
        _delete_=True,
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
    reconstruction=[
        dict(
            name="semantic",
            tokenizer=dict(
                type="SemanticTokenizer", name="asvr/siglip2-base-naflex-rvq8", depth=8, codebook_size=16384
            ),
            head=dict(type="DepthTransformerHead", width=2048, layers=3, num_heads=16, activation_checkpointing="full"),
            loss=dict(type="CodeCrossEntropy"),
            weight=1.0,
            shift=1,
        )
    ],
)

stages = dict(finetune=dict(data=dict(image_aspect="square")))  # the encoder keeps the aspect itself
