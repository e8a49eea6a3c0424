# ASVR with Vicuna-13B. The rest is asvr_vicuna7b.py.
# asvr train asvr_vicuna13b
_base_ = ["./asvr_vicuna7b.py"]

text_tokenizer = dict(name="lmsys/vicuna-13b-v1.5")
model = dict(
    llm=dict(
        name="lmsys/vicuna-13b-v1.5",
        arch=dict(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40),
    )
)
