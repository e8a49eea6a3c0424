# A target with features instead of codes, at the first layer of the LLM, examples/feature_target.py.
# asvr train examples/feature_target
_base_ = ["./custom_components.py"]

custom_imports = dict(imports=["examples.my_components", "examples.feature_target"], allow_failed_imports=False)
model = dict(reconstruction=[dict(name="features", type="CosineFeatures", tap=1, shift=1)])
