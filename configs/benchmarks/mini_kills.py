# A short mini run: all its stages, with validation, bfloat16 weights and a DataLoader worker. The intervals have no
# common multiple. So checkpoints are written in the middle of log intervals.
# python benchmarks/kills.py configs/benchmarks/mini_kills.py
_base_ = ["../asvr_mini.py"]

text_tokenizer = dict(corpus=dict(max_images=200))
model = dict(encoder=dict(image_size=64), llm=dict(dtype="bfloat16", arch=dict(hidden_size=64, intermediate_size=96)))
data = dict(train=dict(max_images=200), micro_batch=4, global_batch=8, num_workers=1)
optim = dict(precision="bf16")
schedule = dict(steps=200)
stages = dict(
    blind=dict(schedule=dict(steps=40), validation=None), pretrain=dict(schedule=dict(steps=60), validation=None)
)
evaluation = dict(dataset=dict(max_images=40))
validation = dict(dataset=dict(type="EasyVQA", split="train", max_images=4), interval=40, max_new_tokens=8)
runtime = dict(log_interval=5, checkpoint_interval=13, keep_checkpoints=3)
