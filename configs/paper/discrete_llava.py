# LLaVA-1.5 with codes of the image as the LLM's input, in place of features.
# asvr train paper/discrete_llava
_base_ = ["./_base_discrete.py"]

model = dict(reconstruction=[])

# fmt: off
published = dict(
    table="T1", row="Discrete input, LLaVA-1.5", average=43.3,
    scores=dict(
        TVQA=49.3, DVQA=20.0, OCRB=29.5, CQA=12.4, MMB=60.4, MME=56.9, SEED=63.1, GQA=56.2,
        MMMU=31.2, AI2D=50.4, RQA=50.2, MMVP=24.7, HBench=21.8, POPE=80.7,
    ),
    differs=[
        "The LLM sees the code vectors of all depths side by side. The paper does not say how the LLM gets the codes.",
    ],
)
