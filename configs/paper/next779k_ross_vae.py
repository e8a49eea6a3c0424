# ROSS (a denoiser of VAE latents, targets/vicuna7b/ross.py) on LLaVA-NeXT's data.
# asvr train paper/next779k_ross_vae
_base_ = ["./_base_next779k_ross.py"]

# fmt: off
published = dict(
    table="T4", row="Next 779K, ROSS on VAE latents", average=52.9,
    scores=dict(
        TVQA=56.3, DVQA=39.6, OCRB=35.9, CQA=41.0, MMB=65.6, MME=71.7, SEED=65.9, GQA=61.6,
        MMMU=34.4, AI2D=65.5, RQA=55.0, MMVP=33.3, HBench=28.9, POPE=85.9,
    ),
    differs=[
        "The head, its learning rate and its schedule are those of ROSS's own code. The paper does not state them.",
    ],
)
