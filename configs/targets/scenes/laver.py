# LaVer on the scenes (arXiv 2512.06281): the second stage has a second forward pass, in which 40 % of an image's tokens
# are masked. There the LLM predicts the outputs of its own moving average for the whole image. Visual tokens see each
# other.
# What differs from the paper: positions are not two-dimensional, the mask token is learned, and the weight of the loss
# is our choice (1 in the released laver_2.yaml). ../vicuna7b/laver.py lists more differences from that file.
# asvr train targets/scenes/laver
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
