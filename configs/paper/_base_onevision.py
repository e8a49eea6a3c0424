# Three stages, as in LLaVA-OneVision: 558K captions, 4M samples of its middle stage, 4M instructions. The paper gives
# these counts and no list of files. These data are public:
#   hf download lmms-lab/LLaVA-ReCap-558K --repo-type dataset --local-dir data/LLaVA-ReCap-558K
#   hf download lmms-lab/LLaVA-ReCap-118K --repo-type dataset --local-dir data/LLaVA-ReCap-118K
#   hf download lmms-lab/LLaVA-ReCap-CC3M --repo-type dataset --local-dir data/LLaVA-ReCap-CC3M
#   hf download lmms-lab/LLaVA-OneVision-Mid-Data --repo-type dataset --local-dir data/LLaVA-OneVision-Mid-Data
#   hf download lmms-lab/LLaVA-OneVision-Data --repo-type dataset --local-dir data/LLaVA-OneVision-Data
# The first four are for the middle stage, the last one has instructions. Adapt the paths below: write two JSON files
# from these data, or name data sets that read them (ParquetDataset, several of them in a Mixture). The middle stage has
# the batch size and the learning rate of the last one.
_base_ = ["../asvr_vicuna7b.py"]

stages = dict(
    _delete_=True,
    pretrain={{_base_.stages.pretrain}},
    midtrain=dict(
        train=["projector", "heads", "llm"],
        data=dict(
            train=dict(ann_file="data/LLaVA-OneVision/mid_4m.json", image_folder="data/LLaVA-OneVision"),
            template="vicuna_v1",
            image_aspect="pad",
            micro_batch=2,
            global_batch=128,
        ),
        optim=dict(lr=2e-5),
    ),
    finetune=dict(
        train=["projector", "heads", "llm"],
        data=dict(
            train=dict(ann_file="data/LLaVA-OneVision/instruct_4m.json", image_folder="data/LLaVA-OneVision"),
            template="vicuna_v1",
            image_aspect="pad",
            micro_batch=2,
            global_batch=128,
        ),
        optim=dict(lr=2e-5),
    ),
)
