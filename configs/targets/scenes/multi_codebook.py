# Multi-codebook codes on the scenes: the channels of a token are cut into 4 groups, each with a codebook of its own
# (UniTok, arXiv 2502.20321). The head predicts the groups one after another, as UniTok's depth transformer does.
# What differs: UniTok learns 8 codebooks of 4,096 codes with an encoder and a decoder. Here 4 codebooks of 64 codes are
# fitted to the features of a frozen encoder.
# asvr train targets/scenes/multi_codebook
_base_ = ["../../studies/_base_scenes.py"]

model = dict(
    reconstruction=[
        dict(
            name="semantic",
            tokenizer=dict(type="SemanticTokenizer", quantizer="product", depth=4, codebook_size=64),
            fit=dict(vectors_per_code=2048, iterations=15),
            head=dict(type="DepthTransformerHead", width=64, layers=1, num_heads=4),
            weight=0.3,
            shift=1,
        )
    ]
)
