# LLaVA-1.5 with Mistral-7B: asvr_mistral7b.py without its target.
# asvr train paper/mistral7b_llava
_base_ = ["../asvr_mistral7b.py"]

model = dict(reconstruction=[])

# fmt: off
published = dict(
    table="T2", row="Mistral-7B, LLaVA-1.5", average=48.1,
    scores=dict(
        TVQA=50.8, DVQA=15.7, OCRB=34.6, CQA=15.2, MMB=65.9, MME=66.9, SEED=67.9, GQA=62.4,
        MMMU=32.0, AI2D=53.0, RQA=55.0, MMVP=35.3, HBench=32.7, POPE=86.6,
    ),
    differs=[
        "The paper does not say which Mistral-7B it used. This is Instruct v0.2.",
    ],
)
