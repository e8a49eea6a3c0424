# Soft codes on the scenes: the target of a token is softmax(-squared distance / temperature) over the codebook, as the
# soft labels of RQ-VAE (arXiv 2203.01941, section 3.2).
# What differs: RQ-VAE's transformer reads codes that are drawn from this softmax. Here it reads the nearest codes. Only
# the 8 most probable codes are kept. There is one code of 256 for each token, fitted to features, without a decoder.
# Squared distances of these features are in the thousands. With this temperature the nearest code has 0.83 of the
# target on average, and the 8 kept codes have 0.99 (400 scenes).
# asvr train targets/scenes/soft_codes
_base_ = ["./asvr.py"]

model = dict(reconstruction=[dict(_base_.model.reconstruction[0], type="SoftCodeTarget", temperature=200.0, top=8)])
