# The dual ablation of ASVR (arXiv 2506.09040) on the 7B base: semantic and appearance codes, each with its own head.
# The losses are added. It is configs/asvr_vicuna7b_dual.py. That file says what differs.
# asvr train targets/vicuna7b/dual
_base_ = ["../../asvr_vicuna7b_dual.py"]
