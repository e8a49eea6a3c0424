# A small LLaVA for benchmarks on the CPU. It has the proportions of the 7B recipe (LLM : head : tower about
# 100 : 16 : 7) at a hundredth of its size, 729 visual tokens and a vocabulary of 32,000. It has no target.
# python benchmarks/throughput.py configs/benchmarks/small_llava.py
_base_ = ["../llava_vicuna7b.py"]

model = dict(
    encoder=dict(
        name=None,
        dtype="float32",
        arch=dict(hidden_size=160, intermediate_size=640, num_hidden_layers=27, num_attention_heads=5),
    ),
    llm=dict(
        name=None,
        activation_checkpointing="auto",
        arch=dict(
            hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12, dtype="float32"
        ),
    ),
)

data = dict(pack=True, micro_batch=8, global_batch=8)
optim = dict(precision="float32")
stages = dict(
    pretrain=dict(model=dict(llm=dict(dtype="float32"))),
    finetune=dict(data=dict(micro_batch=8, global_batch=8, image_aspect="resize")),
)
