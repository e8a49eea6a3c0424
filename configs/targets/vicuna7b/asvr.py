# ASVR (arXiv 2506.09040) on the 7B base, under the name that the other methods are compared by. It is
# configs/asvr_vicuna7b.py, which says what it follows.
# python tools/train.py configs/targets/vicuna7b/asvr.py
_base_ = ["../../asvr_vicuna7b.py"]
