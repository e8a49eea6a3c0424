# ASVR on the scenes: the hidden state before each visual token predicts the token's semantic code. It follows arXiv
# 2506.09040, equation 2. One code of 256 replaces the paper's eight of 16,384.
# asvr train targets/scenes/asvr
_base_ = ["../../studies/_base_scenes.py"]

model = dict(
    reconstruction=[
        dict(
            name="semantic",
            tokenizer=dict(type="SemanticTokenizer", depth=1, codebook_size=256),
            fit=dict(vectors_per_code=512, iterations=15),
            head=dict(type="DepthTransformerHead", width=64, layers=1, num_heads=4),
            weight=0.3,
            shift=1,
        )
    ]
)
