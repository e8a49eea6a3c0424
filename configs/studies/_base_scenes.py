# The config that all arms of the studies here share: first images with captions, then questions.
_base_ = ["../scenes_mini.py"]

optim = dict(precision="bf16")  # 1.3 times as fast on a CPU with bfloat16

stages = dict(
    _delete_=True,
    pretrain=dict(
        init="scratch",
        train=["projector", "heads", "llm"],
        data=dict(train=dict(kinds=[], captions=True, turns=1, describe=False)),
        schedule=dict(steps=1000),
        evaluation=None,
    ),
    finetune=dict(train=["projector", "heads", "llm"]),
)
