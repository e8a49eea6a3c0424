# The weaker tokenizer of paper/weak_tokenizer.py. It is siglip_so400m_rvq8.py, fitted on a quarter of the images.
# ASVR_MODEL_ZOO=models asvr train-tokenizer tokenizers/siglip_so400m_rvq8_quarter
_base_ = ["./siglip_so400m_rvq8.py"]

name = "asvr/siglip-so400m-rvq8-quarter"

data = dict(limit=139_500)
