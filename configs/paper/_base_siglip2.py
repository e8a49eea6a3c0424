# SigLIP2 of the same size in place of SigLIP. The codes are those of SigLIP2's features.
_base_ = ["./_base_next779k.py"]

model = dict(
    encoder=dict(name="google/siglip2-so400m-patch14-384"),
    reconstruction=[
        dict(
            name="semantic",
            tokenizer=dict(type="SemanticTokenizer", name="asvr/siglip2-so400m-rvq8", depth=8, codebook_size=16384),
            head=dict(type="DepthTransformerHead", width=2048, layers=3, num_heads=16, activation_checkpointing="full"),
            loss=dict(type="CodeCrossEntropy"),
            weight=1.0,
            shift=1,
        )
    ],
)
