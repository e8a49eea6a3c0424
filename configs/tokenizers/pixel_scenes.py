# A small VQGAN on the training images of Scenes: 32 x 32 pixels, 8 x 8 codes out of 256. It takes minutes on 2 cores.
# asvr train-tokenizer tokenizers/pixel_scenes
_base_ = ["./pixel_mini.py"]

data = dict(_delete_=True, type="Scenes", scenes=12000, concepts=40, with_text=0)

train = dict(steps=800)
