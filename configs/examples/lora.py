# LoRA in three stages. First a small model learns to answer. Then its LLM is frozen and adapters are trained. Then the
# adapters are merged, and a few weights are trained, which patterns choose. It takes minutes on 2 cores and needs peft
# (pip install -e '.[mini,lora]').
# asvr train examples/lora
_base_ = ["../asvr_mini.py"]

stages = dict(
    _delete_=True,
    # A model to adapt. A real one comes from files: set model.llm.name.
    learn=dict(train=["projector", "heads", "llm"], schedule=dict(steps=250), evaluation=dict(limit=500)),
    # `layers` are patterns of names. All linear layers in the matching modules get an adapter. All other weights of
    # their component are frozen, so `llm` in `train` means the adapters. If the LLM comes from files, checkpoints hold
    # only the adapters.
    adapt=dict(
        train=["projector", "heads", "llm"],
        model_transforms=[dict(type="Lora", layers=["llm.*.self_attn", "llm.*.mlp"], r=8, alpha=16, dropout=0.05)],
        optim=dict(lr=5e-3),
        schedule=dict(steps=150),
        evaluation=dict(limit=500),
    ),
    # A stage without the transform starts from merged weights. `train` takes patterns too.
    polish=dict(
        train=["projector", "llm.*norm*", "llm.*.layers.1.mlp"],
        optim=dict(lr=1e-3),
        schedule=dict(steps=50),
        evaluation=dict(limit=500),
    ),
)
