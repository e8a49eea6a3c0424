# ASVR with Qwen2.5-7B-Instruct. The rest is asvr_vicuna7b.py. The paper has no results for it, but its code has a Qwen2
# class.
# asvr train asvr_qwen2_5_7b
_base_ = ["./asvr_vicuna7b.py"]

text_tokenizer = dict(name="Qwen/Qwen2.5-7B-Instruct")
model = dict(
    llm=dict(
        name="Qwen/Qwen2.5-7B-Instruct",
        arch=dict(
            _delete_=True,
            model_type="qwen2",
            vocab_size=152064,
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
            max_position_embeddings=32768,
            rms_norm_eps=1e-6,
            rope_parameters=dict(rope_type="default", rope_theta=1e6),
            dtype="bfloat16",
        ),
    )
)

stages = dict(finetune=dict(data=dict(template="chatml")))
