# The fields that all studies here share.
config = "./_base_scenes.py"
seeds = [0, 1, 2]
groups = dict(
    general=["what", "count"],
    ocr=["word"],
    knowledge=["knowledge"],
    visual=["color", "plate", "left_of"],
    hallucination=["there"],
)
