# ASVR on Bunny's 2M captions and 2M instructions.
# asvr train paper/bunny2m_asvr
_base_ = ["./_base_bunny2m.py"]

# fmt: off
published = dict(
    table="T2", row="Bunny 2M/2M, ASVR", average=55.7,
    scores=dict(
        TVQA=60.6, DVQA=43.1, OCRB=36.2, CQA=38.9, MMB=68.6, MME=76.2, SEED=68.7, GQA=62.0,
        MMMU=41.4, AI2D=64.8, RQA=55.9, MMVP=35.9, HBench=42.2, POPE=85.7,
    ),
    differs=[],
)
