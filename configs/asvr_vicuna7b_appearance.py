# The paper's appearance ablation: the target is a residual quantisation of SigLIP's 6th layer, depth 8.
# Differs from the paper: the paper trains these codes together with a pixel decoder. Here they are fitted to the
# features alone. For codes of a pixel VQGAN see asvr_vicuna7b_pixel.py.
# asvr train asvr_vicuna7b_appearance
_base_ = ["./llava_vicuna7b.py"]

model = dict(
    reconstruction=[
        dict(
            name="appearance",
            tokenizer=dict(
                type="SemanticTokenizer",
                name="asvr/siglip-so400m-layer6-rvq8",
                depth=8,
                codebook_size=16384,
                encoder=dict(
                    type="HFVisionEncoder",
                    name={{_base_.model.encoder.name}},
                    layer=6,
                    dtype="bfloat16",
                    arch={{_base_.model.encoder.arch}},
                ),
            ),
            head=dict(type="DepthTransformerHead", width=2048, layers=3, num_heads=16, activation_checkpointing="full"),
            loss=dict(type="CodeCrossEntropy"),
            weight=1.0,
            shift=1,
        )
    ]
)
