# The tokenizer of targets/vicuna7b/multi_codebook.py. It is siglip_so400m_rvq8.py with one codebook of 4,096 codes for
# each of 8 groups of channels.
# ASVR_MODEL_ZOO=models asvr train-tokenizer tokenizers/siglip_so400m_pq8
_base_ = ["./siglip_so400m_rvq8.py"]

name = "asvr/siglip-so400m-pq8"

tokenizer = dict(quantizer="product", codebook_size=4096)
