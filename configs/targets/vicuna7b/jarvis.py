# JARVIS (arXiv 2512.15885): in the first stage alone, the first quarter of the LLM's layers tells DINOv2-L's features
# of four blocks of an image, of which it sees the rest. It follows the released code and its script st1_jarvis.sh: the
# cosine, layer 8, 80 % of the images masked, visual tokens that see each other in both stages. Its loss has a weight of
# 1 in the 80 % of micro-batches that it masks, so 0.8 here.
# What differs: SigLIP is the encoder as in the other recipes here (the script's is CLIP), the teacher sees 518 pixels
# (the script's as many as the encoder, 336), the head has biases, and the text template of images alone stays LLaVA's.
# python tools/train.py configs/targets/vicuna7b/jarvis.py
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
