# ROSS on the scenes: a denoising head tells the noise in VAE latents of the whole image from the hidden states of its
# tokens (arXiv 2410.09575; the released code's ross/model/multimodal_denoiser and ross/model/ross_arch.py).
# What differs: a VAE that is trained here on the same images at 64 pixels (8 x 8 tokens of 16 latents; FLUX.1-dev's has
# 64), the mean of its posterior in place of a sample, and a head of 2 blocks of width 128 in place of 3 of 1,024.
# Train the VAE first: python tools/train_tokenizer.py configs/tokenizers/vae_scenes.py
# python tools/train.py configs/targets/scenes/ross.py
_base_ = ["../../studies/_base_scenes.py"]

model = dict(
    reconstruction=[
        dict(
            name="latents",
            type="DenoisingTarget",
            teacher=dict(
                type="LatentEncoder",
                name="./work_dirs/vae_scenes/tokenizer",
                arch=dict(block_out_channels=[16, 32, 64], norm_num_groups=8, latent_channels=4),
            ),
            width=128,
            layers=2,
            num_heads=4,
            times=4,
            weight=1.0,
            shift=0,
        )
    ]
)
