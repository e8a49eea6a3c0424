# A denoising target over the latents of whole images, examples/denoising_target.py. Its latents are cached.
# asvr train examples/denoising_target
_base_ = ["./custom_components.py"]

custom_imports = dict(imports=["examples.my_components", "examples.denoising_target"], allow_failed_imports=False)
model = dict(reconstruction=[dict(name="latents", type="DenoisedLatents", size=8, width=32)])
