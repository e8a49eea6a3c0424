# SigLIP and DINOv2 side by side, as in Prismatic VLMs (https://arxiv.org/abs/2402.07865). DINOv2's 37 x 37 features are
# resized to SigLIP's 27 x 27. The target is ASVR's: the codes of SigLIP's features. The tokenizer has a SigLIP tower of
# its own, because it quantises the features of a single encoder.
# asvr train examples/siglip_dinov2_vicuna7b --dry-run
_base_ = ["../llava_vicuna7b.py"]

model = dict(
    encoder=dict(
        _delete_=True,
        type="MultiEncoder",
        join="channel",
        resample="bilinear",
        encoders=[
            {{_base_.model.encoder}},
            dict(
                type="HFVisionEncoder",
                name="facebook/dinov2-large",
                layer=-2,
                dtype="bfloat16",
                transform=dict(center_crop=False),  # as SigLIP: the same cell must show the same place
                arch=dict(
                    model_type="dinov2",
                    hidden_size=1024,
                    num_hidden_layers=24,
                    num_attention_heads=16,
                    image_size=518,
                    patch_size=14,
                ),
            ),
        ],
    ),
    reconstruction=[
        dict(
            name="semantic",
            tokenizer=dict(
                type="SemanticTokenizer",
                name="asvr/siglip-so400m-rvq8",
                depth=8,
                codebook_size=16384,
                encoder={{_base_.model.encoder}},
            ),
            head=dict(type="DepthTransformerHead", width=2048, layers=3, num_heads=16, activation_checkpointing="full"),
            loss=dict(type="CodeCrossEntropy"),
            weight=1.0,
            shift=1,
        )
    ],
)
