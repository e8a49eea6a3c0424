# A target with the moving average of the trained encoder as its teacher, examples/ema_target.py. Nothing can be cached,
# because the encoder changes.
# asvr train examples/ema_target
_base_ = ["./feature_target.py"]

custom_imports = dict(imports=["examples.ema_target"], allow_failed_imports=False)
model = dict(
    encoder=dict(_delete_=True, type="TimmEncoder", model="vit_tiny_patch16_224", image_size=64),
    projector=dict(_delete_=True, type="MLPProjector"),
    reconstruction=[dict(name="features", type="EmaFeatures", decay=0.99, shift=1)],
)
data = dict(cache=False)
optim = dict(lr=5e-4)
stages = dict(train=dict(train=["encoder", "projector", "heads", "llm"]))
