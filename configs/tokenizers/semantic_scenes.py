# A semantic tokenizer for Scenes: one code of 256 for each of 8 x 8 features of EfficientNet-Lite0, fitted on the
# training images. `targets/scenes/asvr` fits codes in the same way before its first stage, with the seed of the run. As
# a file they can also be the input of the LLM (`CodeEncoder`).
# asvr train-tokenizer tokenizers/semantic_scenes
_base_ = ["./semantic_mini.py"]

tokenizer = dict(depth=1, codebook_size=256, encoder=dict(layer=-2, image_size=128))

data = dict(_delete_=True, type="Scenes", scenes=12000, concepts=40, with_text=0)

fit = dict(vectors_per_code=512, iterations=15)
