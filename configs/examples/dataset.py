# A data set of your own, examples/dataset.py, for training and evaluation.
# It takes half a minute on 2 cores. The model learns to count to four.
# asvr train examples/dataset
_base_ = ["./custom_components.py"]

custom_imports = dict(imports=["examples.my_components", "examples.dataset"], allow_failed_imports=False)

text_tokenizer = dict(vocab_size=300, corpus=dict(_delete_=True, type="Dots", count=200))
data = dict(train=dict(_delete_=True, type="Dots", count=1000))
schedule = dict(steps=150)
evaluation = dict(dataset=dict(type="Dots", first=1000, count=100), max_new_tokens=4, num_examples=0)
