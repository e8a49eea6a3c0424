# ASVR with QLoRA on one card of 24 GB. Differs from asvr_vicuna7b_qlora.py: the LLM has 4 bits in pretrain too, the
# optimiser keeps its moments in 8 bits (pip install torchao), and a micro-batch is one sample.
# asvr train asvr_vicuna7b_24gb
_base_ = ["./asvr_vicuna7b_qlora.py"]

model_transforms = [dict(type="QLora", layers=["llm.*.self_attn", "llm.*.mlp"], r=128, alpha=256, dropout=0.05)]
optim = dict(type="torchao.optim.AdamW8bit")
data = dict(micro_batch=1)
stages = dict(finetune=dict(data=dict(micro_batch=1)))
