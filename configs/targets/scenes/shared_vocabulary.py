# Codes in the LLM's vocabulary on the scenes: 256 visual words are added to the words of the text. There is one softmax
# over both at every position, and no head (Youtu-VL, arXiv 2601.19798). As there, the LLM reads continuous features and
# predicts codes.
# What differs: Youtu-VL has 150,000 visual words from a tokenizer that fuses SigLIP2 and DINOv3. Here they are fitted
# to the features that the LLM reads. We do not know Youtu-VL's weight of the visual loss. It is that of the other
# recipes.
# asvr train targets/scenes/shared_vocabulary
_base_ = ["../../studies/_base_scenes.py"]

model = dict(
    reconstruction=[
        dict(
            name="semantic",
            type="SharedVocabularyTarget",
            tokenizer=dict(type="SemanticTokenizer", depth=1, codebook_size=256),
            fit=dict(vectors_per_code=512, iterations=15),
            weight=0.3,
            shift=1,
        )
    ]
)
