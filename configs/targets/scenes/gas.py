# GAS on the scenes: a middle layer of the LLM tells the next visual embedding, as a moving average of the projector
# (0.999) makes it, by cosine; the weight grows from 0.015 to 1, and the head is not needed for an answer. It follows
# arXiv 2608.12209, of which we know a summary alone, and no released code.
# What differs, or is not known to us: the head (here an MLP of two layers). The paper's ramp takes 4,000 steps of
# training on a model that can see already; here it is half of each stage.
# python tools/train.py configs/targets/scenes/gas.py
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
