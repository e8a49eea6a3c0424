# The dual ablation of ASVR (arXiv 2506.09040) on the scenes: semantic codes as in asvr.py and appearance codes as in
# appearance.py, each with its own head. The losses are added. These two files say what differs from the paper.
# asvr train targets/scenes/dual
_base_ = ["./appearance.py"]

model = dict(
    reconstruction=[
        dict(
            name="semantic",
            tokenizer=dict(type="SemanticTokenizer", depth=1, codebook_size=256),
            fit=dict(vectors_per_code=512, iterations=15),
            head=dict(type="DepthTransformerHead", width=64, layers=1, num_heads=4),
            weight=0.3,
            shift=1,
        ),
        *_base_.model.reconstruction,
    ]
)
