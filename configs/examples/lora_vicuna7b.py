# ASVR's finetune stage with adapters in place of the whole LLM.
# python tools/train.py configs/examples/lora_vicuna7b.py --dry-run
_base_ = ["../asvr_vicuna7b.py"]

stages = dict(
    finetune=dict(model_transforms=[dict(type="Lora", layers=["llm.*.self_attn", "llm.*.mlp"], r=128, alpha=256)])
)
