# ASVR with its visual loss only in instruction tuning. The first stage has no target.
# asvr train paper/finetune_only
_base_ = ["../asvr_vicuna7b.py"]

stages = dict(pretrain=dict(model=dict(reconstruction=[])))

# fmt: off
published = dict(
    table="T8", row="Visual loss in instruction tuning only", average=45.7,
    scores=dict(
        TVQA=55.3, DVQA=18.9, OCRB=29.5, CQA=14.0, MMB=61.2, MME=67.8, SEED=60.5, GQA=58.3,
        MMMU=33.4, AI2D=52.6, RQA=52.3, MMVP=20.8, HBench=30.0, POPE=84.9,
    ),
    differs=[],
)
