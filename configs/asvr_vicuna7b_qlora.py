# asvr_vicuna7b_lora.py with the weights beneath the adapters in 4 bits (QLoRA, arXiv 2305.14314).
# Differs from QLoRA: the scales of the 4 bits stay float32, and no optimiser state is paged. It runs on the CPU too:
# training, resuming and merging were tried there at tiny size, also under DDP and FSDP2. It was not tried on a GPU.
# python tools/train.py configs/asvr_vicuna7b_qlora.py
_base_ = ["./asvr_vicuna7b_lora.py"]

stages = dict(
    finetune=dict(
        model_transforms=[
            dict(type="QLora", layers=["llm.*.self_attn", "llm.*.mlp"], r=128, alpha=256, dropout=0.05),
        ],
    )
)
