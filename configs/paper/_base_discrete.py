# Semantic codes of the image are both input and target. The LLM sees the code vectors of all 8 depths side by side
# (27 x 27 tokens of 8 x 1152 numbers), through the projector.
_base_ = ["../asvr_vicuna7b.py"]

model = dict(
    encoder=dict(
        _delete_=True,
        type="CodeEncoder",
        tokenizer=dict(
            type="SemanticTokenizer",
            name="asvr/siglip-so400m-rvq8",
            depth=8,
            codebook_size=16384,
            encoder=_base_.model.encoder,
        ),
    ),
    # The same tokenizer. It has an encoder of its own, because the model's encoder gives codes.
    reconstruction=[
        dict(
            _base_.model.reconstruction[0],
            tokenizer=dict(_base_.model.reconstruction[0].tokenizer, encoder=_base_.model.encoder),
        )
    ],
)
