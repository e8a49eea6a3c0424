# asvr_vicuna7b_lora.py with the frozen weights in 4 bits (QLoRA, arXiv 2305.14314). Differs from QLoRA: the scales of
# the 4-bit weights stay float32, and no optimiser state is paged. It runs on the CPU too: training, resuming and
# merging were tested there with a tiny model, also under DDP and FSDP2. It was not tested on a GPU.
# asvr train asvr_vicuna7b_qlora
_base_ = ["./asvr_vicuna7b_lora.py"]

stages = dict(
    finetune=dict(
        model_transforms=[
            dict(type="QLora", layers=["llm.*.self_attn", "llm.*.mlp"], r=128, alpha=256, dropout=0.05),
        ],
    )
)
