# LaVer (arXiv 2512.06281): in the second stage 40 % of an image's tokens are masked in a pass of their own, and what
# the moving average of the LLM and of the head gives of the whole image is told there: soft labels and a Gram term.
# Visual tokens see each other in both stages. It follows the released code (src/llamafactory/model/laver/).
# What differs: positions are not two-dimensional, the mask token is learned, the Gram term compares the tokens of one
# image. The weights of the loss and of the Gram term are set by options whose values are not public.
# The teacher is a float32 copy of the LLM: 27 GB more on every card that does not share it.
# python tools/train.py configs/targets/vicuna7b/laver.py
_base_ = ["../../llava_vicuna7b.py"]

model = dict(visual_attention="bidirectional")
stages = dict(
    finetune=dict(
        model=dict(
            reconstruction=[
                dict(
                    name="latents",
                    type="MaskedLatentTarget",
                    mask_ratio=0.4,
                    mlp=dict(layers=3, width=2048),
                    decay=0.996,
                    student_temperature=0.1,
                    teacher_temperature=0.04,
                    centre_momentum=0.9,
                    gram_weight=1.0,
                    weight=1.0,
                )
            ]
        )
    )
)
