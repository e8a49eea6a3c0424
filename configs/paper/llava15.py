# LLaVA-1.5, the paper's baseline: llava_vicuna7b.py.
# asvr train paper/llava15
_base_ = ["../llava_vicuna7b.py"]

# fmt: off
published = dict(
    table="T1", row="LLaVA-1.5", average=46.8,
    scores=dict(
        TVQA=56.0, DVQA=21.1, OCRB=31.3, CQA=14.6, MMB=64.0, MME=67.2, SEED=63.8, GQA=60.5,
        MMMU=32.7, AI2D=53.5, RQA=52.0, MMVP=28.7, HBench=23.9, POPE=85.9,
    ),
    differs=[],
)
