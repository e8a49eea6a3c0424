# JARVIS (arXiv 2512.15885) on the 7B base: four blocks of an image are masked, and the first quarter of the LLM's
# layers predicts DINOv2-L's features of these blocks. The loss is only in the first stage. It follows the released code
# and its script st1_jarvis.sh: a cosine loss, layer 8, 80 % of the images masked. Visual tokens see each other in both
# stages. The script's loss has weight 1 in the 80 % of micro-batches that are masked. So the weight is 0.8 here.
# What differs: the encoder is SigLIP, as in the other recipes here; the script has CLIP. The teacher sees 518 pixels;
# in the script it sees as many as the encoder, 336. The head has biases. Prompts with an image alone have LLaVA's
# template.
# asvr train targets/vicuna7b/jarvis
_base_ = ["../../llava_vicuna7b.py"]

model = dict(visual_attention="bidirectional")
stages = dict(
    pretrain=dict(
        model=dict(
            reconstruction=[
                dict(
                    name="blocks",
                    type="MaskedFeatureTarget",
                    teacher=dict(
                        type="HFVisionEncoder",
                        name="facebook/dinov2-large",
                        layer=-1,
                        dtype="bfloat16",
                        arch=dict(
                            model_type="dinov2",
                            hidden_size=1024,
                            num_hidden_layers=24,
                            num_attention_heads=16,
                            image_size=518,
                            patch_size=14,
                        ),
                        transform=dict(center_crop=False),
                    ),
                    resample="bilinear",
                    tap=8,
                    masks=dict(blocks=4, scale=(0.15, 0.2), aspect=(0.75, 1.5), context=(0.85, 1.0)),
                    share=0.8,
                    weight=0.8,
                )
            ]
        )
    )
)
