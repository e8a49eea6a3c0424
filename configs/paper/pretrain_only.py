# ASVR with its visual loss in the first stage alone, which the paper's ablation of stages leaves out. The second
# stage has no target.
# python tools/train.py configs/paper/pretrain_only.py
_base_ = ["../asvr_vicuna7b.py"]

stages = dict(finetune=dict(model=dict(reconstruction=[])))
