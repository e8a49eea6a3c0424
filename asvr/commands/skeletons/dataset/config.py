# The mini recipe with the data set MyComponent (my_component.py), for training and for evaluation.
#   asvr train my_component_mini.py
_base_ = ["asvr::asvr_mini"]

custom_imports = dict(imports=["my_component"], allow_failed_imports=False)
text_tokenizer = dict(vocab_size=300, corpus=dict(_delete_=True, type="MyComponent", count=60))
data = dict(train=dict(_delete_=True, type="MyComponent", count=600), micro_batch=16, global_batch=16)
evaluation = dict(dataset=dict(_delete_=True, type="MyComponent", first=600, count=60))
# There are only six different images, so fewer codes are fitted than in the recipe.
model = dict(
    reconstruction=[
        dict(_base_.model.reconstruction[0], tokenizer=dict(type="SemanticTokenizer", depth=2, codebook_size=8))
    ]
)
schedule = dict(steps=60)
stages = dict(_delete_=True, train=dict(train=["projector", "heads", "llm"]))
