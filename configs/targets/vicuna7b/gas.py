# GAS on the 7B base: the LLM's middle layer predicts the next visual embedding, with a cosine loss. A moving average of
# the projector (0.999) makes these embeddings. The weight grows from 0.015 to 1 in 4,000 steps. Answers do not need the
# head. It follows arXiv 2608.12209. We know only a summary of this paper, and no released code.
# What differs, or is not known to us: the head (here an MLP of two layers, as wide as the LLM). The paper trains
# Qwen3-VL-2B, which is already a vision-language model. So here the loss is only in finetune.
# asvr train targets/vicuna7b/gas
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
