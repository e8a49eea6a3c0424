# ROSS (targets/vicuna7b/ross.py) on LLaVA-NeXT's data, see _base_next779k.py.
_base_ = ["../targets/vicuna7b/ross.py"]

stages = dict(
    finetune=dict(
        data=dict(
            train=dict(  # see _base_next779k.py
                ann_file="data/LLaVA-NeXT-Data/llava_next_raw_format/llava_next_raw_format_processed.json",
                image_folder="data/LLaVA-NeXT-Data/llava_next_raw_format",
            )
        )
    )
)
