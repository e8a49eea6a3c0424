# VIRAL on the 7B base: layer 16 of the LLM predicts DINOv2-B's features of each visual token, with a cosine loss. It
# follows arXiv 2509.07979 and the released code (llava/model/language_model/llava_llama.py, config.json,
# scripts/v1_5/finetune_lora.sh): the token's own position, an MLP of three layers with SiLU (2048), weight 0.5, only in
# finetune. That stage has LoRA as in llava_vicuna7b_lora.py (rank 128, alpha 256, dropout 0.05, 2e-4, projector 2e-5).
# What differs: the encoder is SigLIP-SO400M with 27 x 27 tokens, not CLIP-L with 24 x 24. DINOv2 sees 518 pixels with
# its own normalisation, and its 37 x 37 features are resized to 27 x 27. The released code gives it CLIP's pixels,
# scaled to CLIP's grid. The features are those of the last block, after a layer norm without DINOv2's own weights. The
# MLP is trained here, with 2e-4. In the released train.py peft freezes it with the LLM, and only the projector is made
# trainable again.
# asvr train targets/vicuna7b/viral
_base_ = ["../../llava_vicuna7b_lora.py"]

stages = dict(
    finetune=dict(
        model=dict(
            reconstruction=[
                dict(
                    name="viral",
                    type="FeatureTarget",
                    teacher=dict(
                        type="HFVisionEncoder",
                        name="facebook/dinov2-base",
                        layer=-1,
                        dtype="bfloat16",
                        transform=dict(center_crop=False),  # as SigLIP: the same cell must show the same place
                        arch=dict(
                            model_type="dinov2",
                            hidden_size=768,
                            num_hidden_layers=12,
                            num_attention_heads=12,
                            image_size=518,
                            patch_size=14,
                        ),
                    ),
                    resample="bilinear",
                    normalize=True,
                    tap=16,
                    mlp=dict(layers=3, width=2048, activation="silu"),
                    loss=dict(type="CosineLoss"),
                    weight=0.5,
                    shift=0,
                )
            ],
        )
    )
)
