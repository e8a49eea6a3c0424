# ASVR on LLaVA-1.5's 558K captions and LLaVA-NeXT's 779K instructions.
# asvr train paper/next779k_asvr
_base_ = ["./_base_next779k.py"]

# fmt: off
published = dict(
    table="T4, T9", row="Next 779K, SigLIP, ASVR", average=55.1,
    scores=dict(
        TVQA=58.6, DVQA=40.6, OCRB=39.7, CQA=43.4, MMB=67.9, MME=73.0, SEED=67.5, GQA=62.9,
        MMMU=34.2, AI2D=65.8, RQA=55.4, MMVP=36.8, HBench=39.2, POPE=85.9,
    ),
    differs=[],
)
