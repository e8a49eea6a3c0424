# LLaVA-1.5's 558K captions. `stages.finetune` of a recipe replaces them by the 665K instructions.
# To download the data in their published layout (about 100 GB with the images):
#   hf download liuhaotian/LLaVA-Pretrain --repo-type dataset --local-dir data/LLaVA-Pretrain
#   unzip -q data/LLaVA-Pretrain/images.zip -d data/LLaVA-Pretrain
#   hf download liuhaotian/LLaVA-Instruct-150K llava_v1_5_mix665k.json --repo-type dataset \
#     --local-dir data/LLaVA-Instruct
# The zip holds folders such as 00453. They must be in data/LLaVA-Pretrain itself, without a folder `images` between.
# The images of the instructions go in data/LLaVA-Instruct: coco/train2017, gqa/images, ocr_vqa/images,
# textvqa/train_images, vg/VG_100K and vg/VG_100K_2. LLaVA's README has the addresses.
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
