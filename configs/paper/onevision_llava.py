# LLaVA in three stages on LLaVA-OneVision's data.
# asvr train paper/onevision_llava
_base_ = ["./_base_onevision.py"]

model = dict(reconstruction=[])

# fmt: off
published = dict(
    table="T2", row="OV 558K/4M/4M, LLaVA", average=56.2,
    scores=dict(
        TVQA=57.2, DVQA=44.1, OCRB=49.6, CQA=39.2, MMB=71.7, MME=71.7, SEED=68.7, GQA=58.2,
        MMMU=37.9, AI2D=70.7, RQA=56.7, MMVP=40.0, HBench=36.1, POPE=85.5,
    ),
    differs=[
        "The paper does not list its 4M + 4M samples. Paths of data must be adapted.",
        "The second stage has the settings of the third one, and the LLM is Vicuna-7B. The paper states neither.",
    ],
)
