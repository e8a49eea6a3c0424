# Soft codes on the 7B base: at each depth, given the codes before, the target is softmax(-squared distance / T) over
# the codebook, as the soft labels of RQ-VAE (arXiv 2203.01941, section 3.2). What differs: RQ-VAE draws the codes that
# its transformer reads from the same softmax, here they are the nearest; of each depth the 8 most probable are kept.
# 0.5 is RQ-VAE's temperature, for its own latents. None is known for SigLIP's features: `entropy_semantic` in
# metrics.jsonl tells how soft it makes them. Where that is near 0, raise it.
# python tools/train.py configs/targets/vicuna7b/soft_codes.py
_base_ = ["../../asvr_vicuna7b.py"]

model = dict(reconstruction=[dict(_base_.model.reconstruction[0], type="SoftCodeTarget", temperature=0.5, top=8)])
