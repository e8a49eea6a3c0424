# ASVR with SigLIP2 in place of SigLIP, on LLaVA-NeXT's data.
# asvr train paper/siglip2_asvr
_base_ = ["./_base_siglip2.py"]

# fmt: off
published = dict(
    table="T9", row="Next 779K, SigLIP2, ASVR", average=57.4,
    scores=dict(
        TVQA=61.0, DVQA=43.7, OCRB=44.8, CQA=49.9, MMB=70.2, MME=76.8, SEED=69.5, GQA=63.4,
        MMMU=36.3, AI2D=67.3, RQA=56.7, MMVP=42.0, HBench=35.8, POPE=86.8,
    ),
    differs=[
        "The paper does not say which codes it used. Here they are codes of SigLIP2's own features.",
    ],
)
