# The dual ablation of ASVR (arXiv 2506.09040) on the 7B base: semantic and appearance codes, a head each, losses added.
# It is configs/asvr_vicuna7b_dual.py, which says what differs.
# python tools/train.py configs/targets/vicuna7b/dual.py
_base_ = ["../../asvr_vicuna7b_dual.py"]
