# ROSS on the scenes: a denoising head gets the hidden states of an image's tokens, and predicts the noise in VAE
# latents of the whole image (arXiv 2410.09575; the released code's ross/model/multimodal_denoiser and
# ross/model/ross_arch.py).
# What differs: the VAE is trained here, on the same images with 64 pixels (8 x 8 tokens of 16 latents; FLUX.1-dev's has
# 64). The mean of its posterior replaces a sample. The head has 2 blocks of width 128 in place of 3 of width 1,024.
# Train the VAE first: asvr train-tokenizer tokenizers/vae_scenes
# asvr train targets/scenes/ross
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
