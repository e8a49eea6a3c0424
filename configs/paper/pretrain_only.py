# ASVR with its visual loss in the first stage alone, which the paper's ablation of stages leaves out. In the second one
# the loss is logged with weight 0.
# python tools/train.py configs/paper/pretrain_only.py
_base_ = ["../asvr_vicuna7b.py"]

stages = dict(finetune=dict(train=["projector", "llm"], model=dict(reconstruction={"0": dict(weight=0.0)})))
