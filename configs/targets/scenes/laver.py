# LaVer on the scenes (arXiv 2512.06281): in the second stage 40 % of an image's tokens are masked in a pass of their
# own, and what the moving average of the LLM gives of the whole image is told there. Visual tokens see each other.
# What differs from the paper: positions are not two-dimensional, the mask token is learned, and the weight of the loss
# is chosen here (the released laver_2.yaml has 1; of more that differs from it see ../vicuna7b/laver.py).
# python tools/train.py configs/targets/scenes/laver.py
_base_ = ["../../studies/_base_scenes.py"]

model = dict(visual_attention="bidirectional", reconstruction=[])
stages = dict(
    finetune=dict(
        model=dict(
            reconstruction=[
                dict(
                    name="latents",
                    type="MaskedLatentTarget",
                    mask_ratio=0.4,
                    mlp=dict(layers=3, width=256),
                    decay=0.996,
                    weight=0.3,
                )
            ]
        )
    )
)
