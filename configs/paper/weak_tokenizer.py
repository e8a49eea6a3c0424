# ASVR with codes of a visual tokenizer that has seen fewer images.
# asvr train paper/weak_tokenizer
_base_ = ["../asvr_vicuna7b.py"]

model = dict(
    reconstruction=[
        dict(
            name="semantic",
            tokenizer=dict(
                type="SemanticTokenizer", name="asvr/siglip-so400m-rvq8-quarter", depth=8, codebook_size=16384
            ),
            head=dict(type="DepthTransformerHead", width=2048, layers=3, num_heads=16, activation_checkpointing="full"),
            loss=dict(type="CodeCrossEntropy"),
            weight=1.0,
            shift=1,
        )
    ]
)

# fmt: off
published = dict(
    table="T8", row="Tokenizer trained on 3M", average=48.6,
    scores=dict(
        TVQA=57.8, DVQA=25.4, OCRB=33.1, CQA=16.2, MMB=67.2, MME=70.3, SEED=64.8, GQA=60.0,
        MMMU=31.8, AI2D=55.9, RQA=54.3, MMVP=24.7, HBench=33.0, POPE=86.1,
    ),
    differs=[
        "The paper trains tokenizers on 12M and 3M images. Here codebooks are fitted on 558K and a quarter of them.",
    ],
)
