# A small VQGAN on easy-vqa's training images: 32 x 32 pixels, 8 x 8 codes out of 256. It takes minutes on 2 cores.
# asvr train-tokenizer tokenizers/pixel_mini
tokenizer = dict(
    type="PixelTokenizer",
    image_size=32,
    arch=dict(
        # Each norm has 32 groups. With 32 channels it would remove the mean of each channel, and so the colour.
        base_channels=64,
        channel_multiplier=[1, 1, 1],
        num_res_blocks=0,
        latent_channels=32,
        embed_dim=8,
        num_embeddings=256,
    ),
)

data = dict(type="EasyVQA", split="train")

train = dict(steps=1200, batch_size=16, lr=2e-3)
