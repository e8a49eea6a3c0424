# Codes in the LLM's vocabulary on the 7B base: 16,384 visual words beside Vicuna's 32,000, one softmax over both at
# every position, no head (Youtu-VL, arXiv 2601.19798). As there, the LLM reads continuous features and predicts codes.
# What differs: Youtu-VL has 150,000 visual words of a tokenizer that fuses SigLIP2 and DINOv3; these are fitted to
# SigLIP's features: python tools/train_tokenizer.py configs/tokenizers/siglip_so400m_vq1.py
# Youtu-VL's weight of the visual loss is not known here; it is 1. The first stage trains the visual rows alone.
# python tools/train.py configs/targets/vicuna7b/shared_vocabulary.py
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
