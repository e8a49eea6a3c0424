optim = dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0, clip_grad=1.0, precision="bf16")
schedule = dict(epochs=1, warmup_ratio=0.03)
