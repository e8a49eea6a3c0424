# ASVR with appearance codes in place of semantic ones: asvr_vicuna7b_appearance.py.
# asvr train paper/appearance
_base_ = ["../asvr_vicuna7b_appearance.py"]

# fmt: off
published = dict(
    table="T1", row="ASVR, appearance only", average=45.0,
    scores=dict(
        TVQA=53.7, DVQA=17.8, OCRB=30.2, CQA=14.4, MMB=61.6, MME=68.7, SEED=59.5, GQA=57.8,
        MMMU=33.1, AI2D=53.7, RQA=49.3, MMVP=22.0, HBench=24.0, POPE=84.1,
    ),
    differs=[
        "Appearance codes are fitted to SigLIP's 6th layer. The paper trains them with a pixel decoder.",
    ],
)
