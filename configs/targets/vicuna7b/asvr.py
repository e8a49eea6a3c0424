# ASVR (arXiv 2506.09040) on the 7B base, in the folder of all methods. It is configs/asvr_vicuna7b.py. That file says
# what it follows.
# python tools/train.py configs/targets/vicuna7b/asvr.py
_base_ = ["../../asvr_vicuna7b.py"]
