# ASVR with Mistral-7B: asvr_mistral7b.py.
# asvr train paper/mistral7b_asvr
_base_ = ["../asvr_mistral7b.py"]

# fmt: off
published = dict(
    table="T2", row="Mistral-7B, ASVR", average=49.4,
    scores=dict(
        TVQA=54.9, DVQA=17.9, OCRB=34.1, CQA=15.6, MMB=67.1, MME=71.5, SEED=68.3, GQA=62.5,
        MMMU=32.6, AI2D=54.5, RQA=55.4, MMVP=35.7, HBench=35.0, POPE=86.8,
    ),
    differs=[
        "The paper does not say which Mistral-7B it used. This is Instruct v0.2.",
    ],
)
