# LaVer (arXiv 2512.06281): in the second stage 40 % of an image's tokens are masked in a pass of their own, and what
# the moving average of the LLM and of the head gives of the whole image is told there: soft labels and a Gram term.
# Visual tokens see each other in both stages. It follows the released code (src/llamafactory/model/laver/).
# What differs: positions are not two-dimensional, the mask token is learned, all layers of the head have a bias, and
# the Gram term compares the tokens of one image. Both weights are 1, as in examples/train_full/laver/laver_2.yaml.
# There the masked part grows from 0 to 5 % by a cosine, and the teacher moves in every 125th of 6,250 steps alone, with
# a decay that grows from 0.95 to 1. Here 40 % are masked (the default of its code), and the teacher moves in each step.
# A third stage without the loss is left out.
# The teacher is a float32 copy of the LLM, 27 GB. Under FSDP2 each card gathers it whole in each micro-batch.
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
