# Codes in the LLM's vocabulary on the 7B base: 16,384 visual words are added to Vicuna's 32,000. There is one softmax
# over both at every position, and no head (Youtu-VL, arXiv 2601.19798). As there, the LLM reads continuous features and
# predicts codes.
# What differs: Youtu-VL has 150,000 visual words from a tokenizer that fuses SigLIP2 and DINOv3. Here they are fitted
# to SigLIP's features. We do not know Youtu-VL's weight of the visual loss. It is 1 here. The first stage trains only
# the visual rows. Fit the codes first: asvr train-tokenizer tokenizers/siglip_so400m_vq1
# asvr train targets/vicuna7b/shared_vocabulary
_base_ = ["../../llava_vicuna7b.py"]

model = dict(
    reconstruction=[
        dict(
            name="semantic",
            type="SharedVocabularyTarget",
            tokenizer=dict(type="SemanticTokenizer", name="asvr/siglip-so400m-vq1", depth=1, codebook_size=16384),
            weight=1.0,
            shift=1,
        )
    ]
)
