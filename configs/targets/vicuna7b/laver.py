# LaVer (arXiv 2512.06281) on the 7B base: the second stage has a second forward pass, in which 40 % of an image's
# tokens are masked. There the LLM predicts the outputs of a teacher for the whole image: soft labels and a Gram term.
# The teacher is the moving average of the LLM and the head. Visual tokens see each other in both stages. It follows the
# released code (src/llamafactory/model/laver/).
# What differs: positions are not two-dimensional, the mask token is learned, all layers of the head have a bias, and
# the Gram term compares the tokens of one image. Both weights are 1, as in examples/train_full/laver/laver_2.yaml. In
# that file the masked share grows from 0 to 5 % along a cosine. The teacher moves only in every 125th of 6,250 steps,
# with a decay that grows from 0.95 to 1. Here 40 % are masked (the default of its code), and the teacher moves in each
# step. Its third stage, which does not have the loss, is left out. The teacher is a float32 copy of the LLM, 27 GB.
# Under FSDP2 each card gathers all of it in each micro-batch.
# asvr train targets/vicuna7b/laver
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
