# The semantic tokenizer of paper/siglip2_asvr.py. It is siglip_so400m_rvq8.py with SigLIP2's features.
# ASVR_MODEL_ZOO=models asvr train-tokenizer tokenizers/siglip2_so400m_rvq8
_base_ = ["./siglip_so400m_rvq8.py"]

name = "asvr/siglip2-so400m-rvq8"

tokenizer = dict(encoder=dict(name="google/siglip2-so400m-patch14-384"))
