# Soft codes on the 7B base: at each depth the target is softmax(-squared distance / T) over the codebook, given the
# codes before. These are the soft labels of RQ-VAE (arXiv 2203.01941, section 3.2).
# What differs: RQ-VAE's transformer reads codes that are drawn from this softmax. Here it reads the nearest codes. Only
# the 8 most probable codes of each depth are kept.
# The temperature 0.5 is RQ-VAE's, for its own latents. We know of none for SigLIP's features. `entropy_semantic` in
# metrics.jsonl shows how soft the labels are. If it is near 0, raise the temperature.
# asvr train targets/vicuna7b/soft_codes
_base_ = ["../../asvr_vicuna7b.py"]

model = dict(reconstruction=[dict(_base_.model.reconstruction[0], type="SoftCodeTarget", temperature=0.5, top=8)])
