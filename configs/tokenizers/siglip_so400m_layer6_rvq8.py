# The appearance tokenizer of asvr_vicuna7b_appearance.py. It is siglip_so400m_rvq8.py with SigLIP's 6th layer.
# ASVR_MODEL_ZOO=models asvr train-tokenizer tokenizers/siglip_so400m_layer6_rvq8
_base_ = ["./siglip_so400m_rvq8.py"]

name = "asvr/siglip-so400m-layer6-rvq8"

tokenizer = dict(encoder=dict(layer=6))
