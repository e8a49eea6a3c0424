# Codes of a pixel VQGAN on the scenes, one for each token, as in vicuna7b/pixel.py. None of the papers here does this.
# It shows what codes of plain pixels do. Train the VQGAN first. It takes minutes on 2 cores:
#   asvr train-tokenizer tokenizers/pixel_scenes
# What differs from the 7B recipe: the VQGAN sees 32 x 32 pixels and has 256 codes. It is trained on the scenes, with
# absolute and squared error alone.
# asvr train targets/scenes/pixel
_base_ = ["../../studies/_base_scenes.py"]

model = dict(
    reconstruction=[
        dict(
            name="pixel",
            tokenizer=dict(
                type="PixelTokenizer",
                name="work_dirs/pixel_scenes/tokenizer",
                image_size=32,
                arch=dict(
                    base_channels=64,
                    channel_multiplier=[1, 1, 1],
                    num_res_blocks=0,
                    latent_channels=32,
                    embed_dim=8,
                    num_embeddings=256,
                ),
            ),
            head=dict(type="DepthTransformerHead", width=64, layers=1, num_heads=4),
            weight=0.3,
            shift=1,
        )
    ]
)
