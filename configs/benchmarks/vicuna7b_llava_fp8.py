# vicuna7b_llava.py with the products of the LLM's blocks in 8 bits (torchao, one scale for each row of a tensor).
# python benchmarks/throughput.py configs/benchmarks/vicuna7b_llava_fp8.py --samples 64
_base_ = ["./vicuna7b_llava.py"]

model_transforms = [dict(type="Float8", layers=["llm.*.self_attn.*_proj", "llm.*.mlp.*_proj"], recipe="rowwise")]
