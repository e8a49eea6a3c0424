# LLaVA on LLaVA-1.5's 558K captions and LLaVA-NeXT's 779K instructions.
# asvr train paper/next779k_llava
_base_ = ["./_base_next779k.py"]

model = dict(reconstruction=[])

# fmt: off
published = dict(
    table="T9", row="Next 779K, SigLIP, LLaVA", average=53.8,
    scores=dict(
        TVQA=57.7, DVQA=40.7, OCRB=37.9, CQA=42.6, MMB=67.4, MME=71.5, SEED=67.2, GQA=61.8,
        MMMU=34.3, AI2D=65.3, RQA=54.6, MMVP=32.8, HBench=33.1, POPE=86.4,
    ),
    differs=[],
)
