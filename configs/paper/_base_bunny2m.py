# Bunny's data in both stages: 2M captions of LAION images, then 2M instructions (Bunny-v1.1, its mix of 2M).
#   hf download BoyaWu10/Bunny-v1_1-data --repo-type dataset --local-dir data/Bunny
# The images of pretrain/ and finetune/ are archives in parts: put the parts together with `cat` and unpack them there.
# Paths below are those of Bunny's own scripts. Adapt them if yours differ.
_base_ = ["../asvr_vicuna7b.py"]

data = dict(
    train=dict(ann_file="data/Bunny/pretrain/bunny_pretrain_laion_2m.json", image_folder="data/Bunny/pretrain/images")
)
stages = dict(
    finetune=dict(
        data=dict(
            train=dict(
                ann_file="data/Bunny/finetune/bunny_llava_allava_2m.json", image_folder="data/Bunny/finetune/images"
            )
        )
    )
)
