# Codes of a pixel VQGAN (LlamaGen's VQ-16, arXiv 2406.06525) on the 7B base. It is configs/asvr_vicuna7b_pixel.py,
# which says how its weights come here. No paper of this list trains so: it is the pixel end of appearance.
# python tools/train.py configs/targets/vicuna7b/pixel.py
_base_ = ["../../asvr_vicuna7b_pixel.py"]
