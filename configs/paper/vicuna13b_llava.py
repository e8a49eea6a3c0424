# LLaVA-1.5 with Vicuna-13B: asvr_vicuna13b.py without its target.
# asvr train paper/vicuna13b_llava
_base_ = ["../asvr_vicuna13b.py"]

model = dict(reconstruction=[])

# fmt: off
published = dict(
    table="T2", row="Vicuna-13B, LLaVA-1.5", average=49.1,
    scores=dict(
        TVQA=57.2, DVQA=22.1, OCRB=32.4, CQA=15.1, MMB=67.1, MME=68.9, SEED=65.6, GQA=60.4,
        MMMU=35.6, AI2D=54.9, RQA=54.8, MMVP=34.0, HBench=32.9, POPE=86.8,
    ),
    differs=[],
)
