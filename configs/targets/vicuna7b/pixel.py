# Codes of a pixel VQGAN (LlamaGen's VQ-16, arXiv 2406.06525) on the 7B base. It is configs/asvr_vicuna7b_pixel.py. That
# file says how to get the weights. None of the papers here does this. It shows what codes of plain pixels do.
# asvr train targets/vicuna7b/pixel
_base_ = ["../../asvr_vicuna7b_pixel.py"]
