# ASVR (arXiv 2506.09040) on the 7B base, in the folder of all methods. It is configs/asvr_vicuna7b.py. That file says
# what it follows.
# asvr train targets/vicuna7b/asvr
_base_ = ["../../asvr_vicuna7b.py"]
