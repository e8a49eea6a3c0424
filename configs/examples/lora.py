# LoRA: a small model learns to answer, then adapters go on in front of its frozen LLM, and at last a few weights of the
# merged model that patterns choose. Minutes on two CPU cores; needs peft (pip install -e '.[mini,lora]').
# python tools/train.py configs/examples/lora.py
_base_ = ["../asvr_mini.py"]

stages = dict(
    _delete_=True,
    # A model to adapt. A real one comes out of files: model.llm.name.
    learn=dict(train=["projector", "heads", "llm"], schedule=dict(steps=250), evaluation=dict(limit=500)),
    # `layers` are patterns of names: all linear layers in what they match get an adapter. All other weights of their
    # component are frozen, so `llm` in `train` means the adapters. Where the LLM comes out of files, checkpoints hold
    # the adapters alone.
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
