# ASVR with semantic and appearance codes: asvr_vicuna7b_dual.py.
# asvr train paper/dual
_base_ = ["../asvr_vicuna7b_dual.py"]

# fmt: off
published = dict(
    table="T1", row="ASVR, appearance and semantic", average=48.5,
    scores=dict(
        TVQA=59.4, DVQA=23.7, OCRB=33.5, CQA=16.1, MMB=65.6, MME=70.2, SEED=66.1, GQA=61.5,
        MMMU=34.0, AI2D=56.3, RQA=53.5, MMVP=22.0, HBench=30.7, POPE=86.3,
    ),
    differs=[
        "Appearance codes are fitted to SigLIP's 6th layer. The paper trains them with a pixel decoder.",
    ],
)
