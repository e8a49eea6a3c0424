# The paper's dual ablation: semantic and appearance codes, each with its own head. The losses are added.
# Differs from the paper, as asvr_vicuna7b_appearance.py does: the appearance codes are fitted without a pixel decoder.
# asvr train asvr_vicuna7b_dual
_base_ = ["./llava_vicuna7b.py"]

model = dict(
    reconstruction=[
        dict(
            name="semantic",
            tokenizer=dict(type="SemanticTokenizer", name="asvr/siglip-so400m-rvq8", depth=8, codebook_size=16384),
            head=dict(type="DepthTransformerHead", width=2048, layers=3, num_heads=16, activation_checkpointing="full"),
            loss=dict(type="CodeCrossEntropy"),
            weight=1.0,
            shift=1,
        ),
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
        ),
    ]
)
