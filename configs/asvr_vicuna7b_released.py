# The objective of the paper's released code: each hidden state predicts the codes of its own visual token (shift=0),
# with the released head. This differs from the paper's equation 2. asvr_vicuna7b.py follows the equation.
# asvr train asvr_vicuna7b_released
_base_ = ["./llava_vicuna7b.py"]

model = dict(
    reconstruction=[
        dict(
            name="semantic",
            tokenizer=dict(type="SemanticTokenizer", name="asvr/siglip-so400m-rvq8", depth=8, codebook_size=16384),
            head=dict(type="ReleasedHead", width=2048, layers=3, num_heads=16, activation_checkpointing="full"),
            loss=dict(type="CodeCrossEntropy"),
            weight=1.0,
            shift=0,
        )
    ]
)
