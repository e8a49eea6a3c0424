# ASVR in three stages on LLaVA-OneVision's data.
# asvr train paper/onevision_asvr
_base_ = ["./_base_onevision.py"]

# fmt: off
published = dict(
    table="T2", row="OV 558K/4M/4M, ASVR", average=57.9,
    scores=dict(
        TVQA=60.0, DVQA=46.5, OCRB=51.3, CQA=41.7, MMB=72.2, MME=73.2, SEED=69.9, GQA=59.8,
        MMMU=39.7, AI2D=71.8, RQA=57.5, MMVP=42.0, HBench=37.9, POPE=86.9,
    ),
    differs=[
        "The paper does not list its 4M + 4M samples. Paths of data must be adapted.",
        "The second stage has the settings of the third one, and the LLM is Vicuna-7B. The paper states neither.",
    ],
)
