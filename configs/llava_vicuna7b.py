# LLaVA-1.5 with SigLIP-SO400M and Vicuna-7B: only the text loss. This is the paper's baseline.
# asvr train llava_vicuna7b
_base_ = [
    "_base_/models/siglip_so400m_vicuna7b.py",
    "_base_/datasets/llava_1_5.py",
    "_base_/schedules/cosine_1epoch.py",
    "_base_/runtime.py",
]

stages = dict(
    pretrain=dict(
        train=["projector", "heads"],
        model=dict(llm=dict(dtype="bfloat16")),  # frozen here, so this halves its memory
        optim=dict(lr=1e-3),
    ),
    finetune=dict(
        train=["projector", "heads", "llm"],
        data=dict(
            train=dict(ann_file="data/LLaVA-Instruct/llava_v1_5_mix665k.json", image_folder="data/LLaVA-Instruct"),
            template="vicuna_v1",
            image_aspect="pad",
            micro_batch=2,
            global_batch=128,
        ),
        optim=dict(lr=2e-5),
    ),
)
