# ASVR on one card of 80 GB, with the whole LLM trained. Differs from asvr_vicuna7b.py: the optimiser keeps its moments
# in 4 bits (pip install torchao).
# asvr train asvr_vicuna7b_80gb
_base_ = ["./asvr_vicuna7b.py"]

optim = dict(type="torchao.optim.AdamW4bit")
