# ASVR with LoRA: adapters are trained in place of the whole LLM, as in llava_vicuna7b_lora.py (LLaVA's own script).
# Neither the paper nor its code has adapters. The visual head and the projector keep the learning rate of
# asvr_vicuna7b.py, 2e-5.
# asvr train asvr_vicuna7b_lora
_base_ = ["./asvr_vicuna7b.py"]

stages = dict(
    finetune=dict(
        model=dict(llm=dict(dtype="bfloat16")),
        model_transforms=[
            dict(type="Lora", layers=["llm.*.self_attn", "llm.*.mlp"], r=128, alpha=256, dropout=0.05),
        ],
        optim=dict(lr=2e-4, lr_scale=dict(projector=0.1, heads=0.1)),
    )
)
