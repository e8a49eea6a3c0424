# Soft codes on the scenes: the target of a token is softmax(-squared distance / temperature) over the codebook, as the
# soft labels of RQ-VAE (arXiv 2203.01941, section 3.2). What differs: RQ-VAE draws the codes that its transformer reads
# from the same softmax, here they are the nearest; the 8 most probable codes are kept; one code of 256 a token, fitted
# to features and not learned with a decoder. Squared distances of these features are in the thousands: the temperature
# gives the nearest code 0.83 of the target on average, the 8 kept ones 0.99 (400 scenes).
# python tools/train.py configs/targets/scenes/soft_codes.py
_base_ = ["./asvr.py"]

model = dict(reconstruction=[dict(_base_.model.reconstruction[0], type="SoftCodeTarget", temperature=200.0, top=8)])
