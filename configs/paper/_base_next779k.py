# LLaVA-NeXT's 779K instructions and LLaVA-1.5's 558K captions.
#   hf download lmms-lab/LLaVA-NeXT-Data --include "llava_next_raw_format/*" --repo-type dataset \
#     --local-dir data/LLaVA-NeXT-Data
# Unpack the archives of images in data/LLaVA-NeXT-Data/llava_next_raw_format.
_base_ = ["../asvr_vicuna7b.py"]

stages = dict(
    finetune=dict(
        data=dict(
            train=dict(
                ann_file="data/LLaVA-NeXT-Data/llava_next_raw_format/llava_next_raw_format_processed.json",
                image_folder="data/LLaVA-NeXT-Data/llava_next_raw_format",
            )
        )
    )
)
