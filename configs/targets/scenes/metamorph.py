# MetaMorph's visual prediction on the scenes: the state before a visual token tells the encoder's features of it, by
# cosine. It follows arXiv 2412.14164 and the released code (metamorph/model/language_model/metamorph_llama.py with
# scripts/finetune_1node.sh): after the final norm, an MLP of three layers with GELU, weight 1.
# What differs: all images carry the loss, not those of answers alone, since here an image stands in the question; it is
# there in both stages, where the released code begins in the second one.
# python tools/train.py configs/targets/scenes/metamorph.py
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
