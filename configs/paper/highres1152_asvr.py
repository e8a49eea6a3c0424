# ASVR on images of 1152 pixels.
# asvr train paper/highres1152_asvr
_base_ = ["./_base_highres1152.py"]

# fmt: off
published = dict(
    table="T3", row="1152 px, ASVR", average=57.1,
    scores=dict(
        TVQA=58.9, DVQA=48.9, OCRB=45.6, CQA=49.3, MMB=68.0, MME=76.7, SEED=67.2, GQA=62.4,
        MMMU=36.9, AI2D=65.4, RQA=57.6, MMVP=31.9, HBench=43.7, POPE=86.5,
    ),
    differs=[],
)
