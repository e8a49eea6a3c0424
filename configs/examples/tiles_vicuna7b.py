# ASVR on tiles (LLaVA-NeXT's anyres): an overview of the image and up to four tiles, each with 729 tokens. All of them
# are reconstructed.
# asvr train examples/tiles_vicuna7b --dry-run
_base_ = ["../asvr_vicuna7b.py"]

model = dict(layout=dict(type="AnyRes", grids=[(1, 2), (2, 1), (2, 2), (1, 3), (3, 1)]))
# An image has up to 3,699 tokens: four tiles, an overview, and a newline after each row of cells.
data = dict(max_length=4096, image_aspect="square", micro_batch=1)
stages = dict(finetune=dict(data=dict(image_aspect="square", micro_batch=1)))
