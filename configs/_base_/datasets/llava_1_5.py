# LLaVA-1.5's 558K captions. `stages.finetune` of a recipe replaces them by the 665K instructions.
# To download the data in their published layout:
#   hf download liuhaotian/LLaVA-Pretrain --repo-type dataset --local-dir data/LLaVA-Pretrain
#   hf download liuhaotian/LLaVA-Instruct-150K llava_v1_5_mix665k.json --repo-type dataset \
#     --local-dir data/LLaVA-Instruct
# Unzip images.zip in data/LLaVA-Pretrain; the images of coco, gqa, ocr_vqa, textvqa and vg go in data/LLaVA-Instruct.
data = dict(
    train=dict(
        type="LlavaDataset",
        ann_file="data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json",
        image_folder="data/LLaVA-Pretrain",
    ),
    template="plain",
    max_length=2048,
    image_aspect="square",
    on_error="raise",
    micro_batch=4,
    global_batch=256,
    pack=True,
    balance=True,
    num_workers=4,
)
