# GAS on the 7B base: the LLM's middle layer tells the next visual embedding, as a moving average of the projector
# (0.999) makes it, by cosine; the weight grows from 0.015 to 1 in 4,000 steps. The head is not needed for an answer.
# It follows arXiv 2608.12209, of which we know a summary alone, and no released code.
# What differs, or is not known to us: the head (here an MLP of two layers, as wide as the LLM). The paper trains
# Qwen3-VL-2B, which can see already, so here the loss is there in finetune alone.
# python tools/train.py configs/targets/vicuna7b/gas.py
_base_ = ["../../llava_vicuna7b.py"]

stages = dict(
    finetune=dict(
        model=dict(
            reconstruction=[
                dict(
                    name="gas",
                    type="EmbeddingTarget",
                    decay=0.999,
                    tap=16,
                    mlp=dict(layers=2, activation="gelu"),
                    loss=dict(type="CosineLoss"),
                    weight=dict(begin=0.015, end=1.0, until=0.77),  # 4,000 of the stage's 5,197 steps
                    shift=1,
                )
            ]
        ),
    ),
)
