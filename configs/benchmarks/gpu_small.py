# A run of half a minute on painted scenes with random weights. It needs no files. Its accuracy does not matter.
# python benchmarks/gpu.py --seconds 540 --out DIR
_base_ = ["../_base_/runtime.py"]

text_tokenizer = dict(type="ByteLevelBPE", vocab_size=400, corpus=dict(type="Scenes", scenes=20, captions=True))
model = dict(
    type="VLM",
    encoder=dict(type="HFVisionEncoder", name="tower"),  # benchmarks/gpu_train.py writes one, and names its folder
    projector=dict(type="MLPProjector"),
    llm=dict(
        type="HFCausalLM",
        arch=dict(
            model_type="llama",
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=256,
        ),
    ),
    reconstruction=[
        dict(
            name="semantic",
            tokenizer=dict(type="SemanticTokenizer", depth=2, codebook_size=16),
            fit=dict(vectors_per_code=32, iterations=5),
            head=dict(type="DepthTransformerHead", width=64, layers=1, num_heads=4),
            loss=dict(type="CodeCrossEntropy"),
            weight=0.3,
            shift=1,
        )
    ],
)
data = dict(
    train=dict(type="Scenes", scenes=60, size=64),
    template=dict(type="vicuna_v1", system=""),
    max_length=128,
    image_aspect="square",
    on_error="raise",
    cache=True,
    pack=True,
    micro_batch=4,
    global_batch=8,
    num_workers=1,
)
optim = dict(type="AdamW", lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01, clip_grad=1.0, precision="float32")
schedule = dict(steps=60, warmup_ratio=0.1)
stages = dict(
    pretrain=dict(train=["projector", "heads"], schedule=dict(steps=20)),
    finetune=dict(train=["projector", "heads", "llm"]),
)
runtime = dict(log_interval=5, checkpoint_interval=10)
