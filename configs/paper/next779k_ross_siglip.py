# ROSS with a denoiser of SigLIP's features in place of VAE latents, on LLaVA-NeXT's data.
# asvr train paper/next779k_ross_siglip
_base_ = ["./_base_next779k_ross.py"]

model = dict(
    reconstruction=[
        dict(
            name="features",
            type="DenoisingTarget",
            teacher={{_base_.model.encoder}},
            normalize=True,
            width=1024,
            layers=3,
            num_heads=16,
            times=4,
            weight=1.0,
            shift=0,
        )
    ]
)

# fmt: off
published = dict(
    table="T4", row="Next 779K, ROSS on SigLIP features", average=53.3,
    scores=dict(
        TVQA=57.5, DVQA=40.2, OCRB=37.4, CQA=42.5, MMB=67.0, MME=70.5, SEED=66.2, GQA=62.1,
        MMMU=34.9, AI2D=64.6, RQA=55.7, MMVP=30.1, HBench=31.2, POPE=85.8,
    ),
    differs=[
        "The head, its learning rate and its schedule are those of ROSS's own code. The paper does not state them.",
        "SigLIP's features go through a layer norm before noise of variance 1 is added. The paper does not state this.",
    ],
)
