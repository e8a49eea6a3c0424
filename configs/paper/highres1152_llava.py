# LLaVA on images of 1152 pixels.
# asvr train paper/highres1152_llava
_base_ = ["./_base_highres1152.py"]

model = dict(reconstruction=[])

# fmt: off
published = dict(
    table="T3", row="1152 px, LLaVA", average=55.0,
    scores=dict(
        TVQA=58.1, DVQA=44.1, OCRB=39.5, CQA=47.5, MMB=66.6, MME=74.1, SEED=66.8, GQA=62.0,
        MMMU=35.8, AI2D=62.8, RQA=57.8, MMVP=30.0, HBench=40.6, POPE=84.5,
    ),
    differs=[],
)
