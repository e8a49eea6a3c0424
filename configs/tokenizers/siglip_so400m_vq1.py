# The tokenizer of targets/vicuna7b/shared_vocabulary.py. It is siglip_so400m_rvq8.py with one code for each token.
# ASVR_MODEL_ZOO=models asvr train-tokenizer tokenizers/siglip_so400m_vq1
_base_ = ["./siglip_so400m_rvq8.py"]

name = "asvr/siglip-so400m-vq1"

tokenizer = dict(depth=1)
