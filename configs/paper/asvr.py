# ASVR, the paper's main row: asvr_vicuna7b.py.
# asvr train paper/asvr
_base_ = ["../asvr_vicuna7b.py"]

# fmt: off
published = dict(
    table="T1", row="ASVR", average=49.8,
    scores=dict(
        TVQA=59.5, DVQA=24.3, OCRB=35.4, CQA=16.4, MMB=66.1, MME=72.8, SEED=66.4, GQA=61.5,
        MMMU=33.9, AI2D=57.0, RQA=54.1, MMVP=30.0, HBench=33.7, POPE=86.3,
    ),
    differs=[],
)
