# ASVR with its visual loss only in the first stage. The second stage has no target. The paper's ablation of stages does
# not have this case.
# asvr train paper/pretrain_only
_base_ = ["../asvr_vicuna7b.py"]

stages = dict(finetune=dict(model=dict(reconstruction=[])))
