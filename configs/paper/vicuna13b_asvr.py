# ASVR with Vicuna-13B: asvr_vicuna13b.py.
# asvr train paper/vicuna13b_asvr
_base_ = ["../asvr_vicuna13b.py"]

# fmt: off
published = dict(
    table="T2", row="Vicuna-13B, ASVR", average=52.4,
    scores=dict(
        TVQA=61.6, DVQA=27.3, OCRB=37.1, CQA=18.4, MMB=70.8, MME=74.9, SEED=68.7, GQA=62.8,
        MMMU=36.4, AI2D=60.0, RQA=56.0, MMVP=35.3, HBench=36.8, POPE=87.5,
    ),
    differs=[],
)
