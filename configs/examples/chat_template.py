# A chat template of your own, examples/chat_template.py, with a text tokenizer that has its special tokens.
# It takes half a minute on 2 cores. It is an example, not a good model.
# asvr train examples/chat_template
_base_ = ["./custom_components.py"]

custom_imports = dict(imports=["examples.my_components", "examples.chat_template"], allow_failed_imports=False)

text_tokenizer = dict(special_tokens=["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"])
data = dict(template=dict(_delete_=True, type="Llama3"))
evaluation = dict(dataset=dict(type="EasyVQA", split="test", max_images=20), max_new_tokens=8, num_examples=0)
