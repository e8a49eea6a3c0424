# Metrics of your own besides accuracy, examples/metric.py, on easy-vqa questions. The best weights are those with the
# highest word_f1. It takes less than two minutes on 2 cores.
# asvr train examples/metric
_base_ = ["../asvr_mini.py"]

custom_imports = dict(imports=["examples.metric"], allow_failed_imports=False)

text_tokenizer = dict(corpus=dict(max_images=200))
data = dict(train=dict(max_images=200))
schedule = dict(steps=60)
stages = dict(
    _delete_=True,
    train=dict(
        train=["projector", "heads", "llm"],
        validation=dict(
            dataset=dict(type="EasyVQA", split="test", max_images=10),
            interval=30,
            metrics=[dict(type="ExactMatch"), dict(type="WordF1")],
            best="word_f1",
        ),
    ),
)
evaluation = dict(
    dataset=dict(max_images=40),
    metrics=[dict(type="ExactMatch"), dict(type="WordF1"), dict(type="YesShare")],
)
