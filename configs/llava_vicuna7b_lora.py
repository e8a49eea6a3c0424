# LLaVA-1.5 with LoRA: adapters are trained in place of the whole LLM, as in LLaVA's scripts/v1_5/finetune_lora.sh and
# VIRAL's scripts. Rank 128, alpha 256 and dropout 0.05 on all linear layers of the LLM's blocks; a learning rate of
# 2e-4 for adapters and 2e-5 for the projector; batches of 128. The LLM itself is frozen in bfloat16.
# Differs: SigLIP in place of CLIP; samples are packed and not grouped by modality.
# asvr train llava_vicuna7b_lora
_base_ = ["./llava_vicuna7b.py"]

stages = dict(
    finetune=dict(
        model=dict(llm=dict(dtype="bfloat16")),
        model_transforms=[
            dict(type="Lora", layers=["llm.*.self_attn", "llm.*.mlp"], r=128, alpha=256, dropout=0.05),
        ],
        optim=dict(lr=2e-4, lr_scale=dict(projector=0.1)),
    )
)
