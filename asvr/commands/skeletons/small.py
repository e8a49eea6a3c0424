# Few images and few steps, so that you see a mistake soon. Remove all lines below for a full run of the recipe.
text_tokenizer = dict(corpus=dict(max_images=200))
data = dict(train=dict(max_images=200))
schedule = dict(steps=60)
stages = dict(_delete_=True, train=dict(train=["projector", "heads", "llm"]))
