# ASVR, the paper's main recipe. It is LLaVA-1.5 with one more task: the hidden state before each visual token predicts
# the semantic codes of this token (equation 2).
# asvr train asvr_vicuna7b
_base_ = ["./llava_vicuna7b.py"]

model = dict(
    reconstruction=[
        dict(
            name="semantic",
            # There is no `encoder`, so it quantises the features that the model itself sees (SigLIP, layer -2).
            tokenizer=dict(type="SemanticTokenizer", name="asvr/siglip-so400m-rvq8", depth=8, codebook_size=16384),
            head=dict(type="DepthTransformerHead", width=2048, layers=3, num_heads=16, activation_checkpointing="full"),
            loss=dict(type="CodeCrossEntropy"),
            weight=1.0,
            shift=1,
        )
    ]
)
