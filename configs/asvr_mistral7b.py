# ASVR with Mistral-7B. The rest is asvr_vicuna7b.py. The paper does not say which Mistral-7B it used. This is Instruct
# v0.2.
# asvr train asvr_mistral7b
_base_ = ["./asvr_vicuna7b.py"]

text_tokenizer = dict(name="mistralai/Mistral-7B-Instruct-v0.2")
model = dict(
    llm=dict(
        name="mistralai/Mistral-7B-Instruct-v0.2",
        arch=dict(
            _delete_=True,
            model_type="mistral",
            vocab_size=32000,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            max_position_embeddings=32768,
            rms_norm_eps=1e-5,
            rope_parameters=dict(rope_type="default", rope_theta=1e6),
            sliding_window=None,
            dtype="bfloat16",
        ),
    )
)

stages = dict(finetune=dict(data=dict(template="mistral")))
