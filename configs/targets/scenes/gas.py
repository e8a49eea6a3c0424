# GAS on the scenes: a middle layer of the LLM predicts the next visual embedding, with a cosine loss. A moving average
# of the projector (0.999) makes these embeddings. The weight grows from 0.015 to 1. Answers do not need the head. It
# follows arXiv 2608.12209. We know only a summary of this paper, and no released code.
# What differs, or is not known to us: the head (here an MLP of two layers). In the paper the weight grows for 4,000
# steps, and the model is already a vision-language model. Here it grows for half of each stage.
# asvr train targets/scenes/gas
_base_ = ["../../studies/_base_scenes.py"]

model = dict(
    reconstruction=[
        dict(
            name="gas",
            type="EmbeddingTarget",
            decay=0.999,
            tap=1,
            mlp=dict(layers=2, activation="gelu"),
            loss=dict(type="CosineLoss"),
            weight=dict(begin=0.015, end=1.0, until=0.5),
            shift=1,
        )
    ]
)
