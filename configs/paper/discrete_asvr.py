# ASVR with codes of the image as the LLM's input, in place of features.
# asvr train paper/discrete_asvr
_base_ = ["./_base_discrete.py"]

# fmt: off
published = dict(
    table="T1", row="Discrete input, ASVR", average=45.3,
    scores=dict(
        TVQA=55.5, DVQA=21.4, OCRB=32.4, CQA=14.7, MMB=62.3, MME=57.7, SEED=65.4, GQA=57.1,
        MMMU=32.0, AI2D=53.5, RQA=52.3, MMVP=26.0, HBench=27.7, POPE=76.8,
    ),
    differs=[
        "The LLM sees the code vectors of all depths side by side. The paper does not say how the LLM gets the codes.",
    ],
)
