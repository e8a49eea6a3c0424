# LLaVA on Bunny's 2M captions and 2M instructions.
# asvr train paper/bunny2m_llava
_base_ = ["./_base_bunny2m.py"]

model = dict(reconstruction=[])

# fmt: off
published = dict(
    table="T2", row="Bunny 2M/2M, LLaVA", average=55.1,
    scores=dict(
        TVQA=61.6, DVQA=43.8, OCRB=35.4, CQA=38.7, MMB=68.4, MME=74.9, SEED=67.9, GQA=61.7,
        MMMU=40.6, AI2D=64.6, RQA=56.1, MMVP=34.8, HBench=36.9, POPE=85.6,
    ),
    differs=[],
)
