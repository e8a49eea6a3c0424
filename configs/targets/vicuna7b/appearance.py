# The appearance ablation of ASVR (arXiv 2506.09040) on the 7B base: residual codes of SigLIP's 6th layer, fitted
# without a pixel decoder. It is configs/asvr_vicuna7b_appearance.py. That file says what it follows and what differs.
# asvr train targets/vicuna7b/appearance
_base_ = ["../../asvr_vicuna7b_appearance.py"]
