# LLaVA with SigLIP2 in place of SigLIP, on LLaVA-NeXT's data.
# asvr train paper/siglip2_llava
_base_ = ["./_base_siglip2.py"]

model = dict(reconstruction=[])

# fmt: off
published = dict(
    table="T9", row="Next 779K, SigLIP2, LLaVA", average=55.2,
    scores=dict(
        TVQA=59.2, DVQA=41.8, OCRB=40.5, CQA=46.3, MMB=66.9, MME=74.0, SEED=68.3, GQA=62.7,
        MMMU=34.7, AI2D=66.4, RQA=56.9, MMVP=33.3, HBench=35.1, POPE=86.1,
    ),
    differs=[],
)
