# Muon for the matrices of transformer blocks, and AdamW for all other parameters. Learning rates differ by component
# and by layer. The schedule is constant and then falls (WSD). Averages of the weights are evaluated too.
# It takes about a minute on 2 cores. It is an example, not a good model.
#   asvr train examples/muon
_base_ = ["../asvr_mini.py"]

optim = dict(
    _delete_=True,  # AdamW's settings are not for Muon
    type="Muon",
    lr=2e-3,  # for both: Muon's updates are as large as AdamW's (adjust_lr_fn='match_rms_adamw')
    weight_decay=0.01,
    momentum=0.95,
    betas=(0.9, 0.98),  # for AdamW
    adamw_lr_scale=1.0,
    groups=dict(
        heads=dict(lr_scale=2.0, weight_decay=0.0),
        llm=dict(layer_decay=0.9),  # the last block has 0.9 of the rate, the one before 0.81, embeddings the least
    ),
    clip_grad=1.0,
    precision="float32",
)
schedule = dict(_delete_=True, steps=60, preset="wsd", warmup_ratio=0.1, decay_ratio=0.3)
# The same schedule from MMEngine's schedulers. A number with a point is a share of all steps:
# schedule = dict(
#     _delete_=True,
#     steps=60,
#     param_schedulers=[
#         dict(type="LinearLR", start_factor=0.1, end=0.1),
#         dict(type="LinearLR", start_factor=1.0, end_factor=0.0, begin=0.7),
#     ],
# )
runtime = dict(ema=dict(decay=0.9, evaluate=True), log_interval=5)

text_tokenizer = dict(corpus=dict(max_images=200))
data = dict(train=dict(max_images=200))
stages = dict(_delete_=True, train=dict(train=["projector", "heads", "llm"]))
evaluation = dict(dataset=dict(max_images=50), limit=64)
