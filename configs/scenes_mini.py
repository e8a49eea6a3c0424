# Scenes of known objects: a small Llama with random weights learns to answer questions on number, colour, place and
# letters in new drawings. It also predicts the semantic codes of each image.
#   pip install -e '.[mini]' && asvr train scenes_mini
_base_ = ["./asvr_mini.py"]

text_tokenizer = dict(
    corpus=dict(_delete_=True, type="Scenes", scenes=3000, per_scene=None, captions=True, concepts=40)
)

model = dict(
    encoder=dict(layer=-2),  # 8 x 8 tokens of 112 features
    projector=dict(positions=True),
    reconstruction=[
        dict(
            name="semantic",
            tokenizer=dict(type="SemanticTokenizer", depth=1, codebook_size=256),
            fit=dict(vectors_per_code=512, iterations=15),
            head=dict(type="DepthTransformerHead", width=64, layers=1, num_heads=4),
            loss=dict(type="CodeCrossEntropy"),
            weight=0.3,
            shift=1,
        )
    ],
)

data = dict(
    train=dict(
        _delete_=True,
        type="Scenes",
        scenes=12000,
        concepts=40,
        turns=8,
        describe=True,
        kinds=["what", "count", "word", "knowledge", "color", "plate", "left_of", "there"],
    ),
    max_length=280,
    micro_batch=16,
    global_batch=16,
)
schedule = dict(steps=1600)

stages = dict(
    _delete_=True,
    blind=dict(
        init="scratch",
        train=["projector", "heads", "llm"],
        data=dict(train=dict(with_images=False)),
        schedule=dict(steps=300),
        evaluation=dict(dataset=dict(with_images=False)),
    ),
    pretrain=dict(
        init="scratch",
        train=["projector", "heads", "llm"],
        data=dict(train=dict(kinds=[], captions=True, turns=1, describe=False)),
        schedule=dict(steps=1000),
        evaluation=None,
    ),
    finetune=dict(train=["projector", "heads", "llm"]),
)
evaluation = dict(
    dataset=dict(
        _delete_=True,
        type="Scenes",
        split="test",
        scenes=600,
        concepts=40,
        per_scene=None,
        kinds=["what", "count", "word", "knowledge", "color", "plate", "left_of", "there"],
    ),
    batch_size=256,
)
