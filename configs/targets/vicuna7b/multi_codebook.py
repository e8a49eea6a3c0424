# Multi-codebook codes on the 7B base: the channels of a token are cut into 8 groups, each with a codebook of 4,096 (the
# sizes of UniTok, arXiv 2502.20321). The head predicts the groups one after another.
# What differs: UniTok learns codebooks of narrow latents with an encoder and a decoder. Here they are fitted to
# SigLIP's features, with 144 channels in each group. Fit them first: asvr train-tokenizer tokenizers/siglip_so400m_pq8
# asvr train targets/vicuna7b/multi_codebook
_base_ = ["../../asvr_vicuna7b.py"]

model = dict(
    reconstruction=[
        dict(
            _base_.model.reconstruction[0],
            tokenizer=dict(
                type="SemanticTokenizer",
                name="asvr/siglip-so400m-pq8",
                quantizer="product",
                depth=8,
                codebook_size=4096,
            ),
        )
    ]
)
