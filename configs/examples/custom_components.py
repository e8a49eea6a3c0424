# Components of your own: the encoder, projector, head and loss of examples/my_components.py, on easy-vqa images.
# It takes less than a minute on 2 cores. It is an example, not a good model.
# asvr train examples/custom_components
_base_ = ["../_base_/runtime.py"]

custom_imports = dict(imports=["examples.my_components"], allow_failed_imports=False)

text_tokenizer = dict(type="ByteLevelBPE", vocab_size=400, corpus=dict(type="EasyVQA", split="train", max_images=200))

model = dict(
    type="VLM",
    encoder=dict(type="ColorPatches", image_size=64, patch=8),
    projector=dict(type="NormProjector"),
    llm=dict(
        type="HFCausalLM",
        arch=dict(
            model_type="llama",
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=256,
        ),
    ),
    reconstruction=[
        dict(
            name="semantic",
            tokenizer=dict(type="SemanticTokenizer", depth=2, codebook_size=64),
            fit=dict(iterations=5),
            head=dict(type="AdditiveHead", width=128),
            loss=dict(type="FocalCodeLoss", gamma=1.0),
            weight=1.0,
            shift=1,
        )
    ],
)

data = dict(
    train=dict(type="EasyVQA", split="train", turns=4, max_images=200),
    template=dict(type="vicuna_v1", system=""),
    max_length=256,
    image_aspect="square",
    on_error="raise",
    micro_batch=16,
    global_batch=16,
    num_workers=0,
    cache=True,
)

optim = dict(type="AdamW", lr=2e-3, betas=(0.9, 0.95), weight_decay=0.01, clip_grad=1.0, precision="float32")
schedule = dict(steps=60, warmup_ratio=0.1)
stages = dict(train=dict(train=["projector", "heads", "llm"]))
runtime = dict(device="cpu")
