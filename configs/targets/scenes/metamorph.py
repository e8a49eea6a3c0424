# MetaMorph's visual prediction on the scenes: the hidden state before a visual token predicts the encoder's features of
# the token, with a cosine loss. It follows arXiv 2412.14164 and the released code
# (metamorph/model/language_model/metamorph_llama.py with scripts/finetune_1node.sh): after the final norm, an MLP of
# three layers with GELU, weight 1.
# What differs: all images have the loss, because here images are in questions. The released code has it only for images
# in answers. Here the loss is in both stages. The released code begins in the second one.
# asvr train targets/scenes/metamorph
_base_ = ["../../studies/_base_scenes.py"]

model = dict(
    reconstruction=[
        dict(
            name="metamorph",
            type="FeatureTarget",
            mlp=dict(layers=3, activation="gelu"),
            loss=dict(type="CosineLoss"),
            weight=1.0,
            shift=1,
        )
    ]
)
