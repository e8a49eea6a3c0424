# The 7B recipe on one card of 141 GB. Blocks are compiled and keep the results of their products. Rows of the finetune
# stage are about as long as the card's memory allows with a reconstruction target.
# python benchmarks/throughput.py configs/benchmarks/vicuna7b_llava.py --samples 64
_base_ = ["../llava_vicuna7b.py"]

model = dict(llm=dict(activation_checkpointing="selective"))
runtime = dict(compile=True)
stages = dict(finetune=dict(data=dict(pack=dict(_delete_=True, max_tokens=4864, max_images=5))))
