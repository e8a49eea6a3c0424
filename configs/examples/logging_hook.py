# A hook of your own, examples/logging_hook.py, and two backends of MMEngine. Everything that is logged goes to
# TensorBoard (pip install tensorboard) and to a JSON file. It takes about a minute on 2 cores.
#   asvr train examples/logging_hook
#   tensorboard --logdir work_dirs/logging_hook
_base_ = ["../asvr_mini.py"]

custom_imports = dict(imports=["examples.logging_hook"], allow_failed_imports=False)
custom_hooks = [dict(type="CsvHook", keys=["loss", "loss_text", "loss_semantic", "lr"])]
visualizer = dict(vis_backends=[dict(type="TensorboardVisBackend"), dict(type="LocalVisBackend")])

text_tokenizer = dict(corpus=dict(max_images=200))
data = dict(train=dict(max_images=200))
schedule = dict(steps=60)
stages = dict(_delete_=True, train=dict(train=["projector", "heads", "llm"]))
validation = dict(dataset=dict(type="EasyVQA", split="test", max_images=50), interval=30, limit=64)
evaluation = dict(dataset=dict(max_images=50), limit=64)
runtime = dict(log_interval=5)
