# Images of 1152 pixels through SigLIP at three scales (384, 768, 1152), which stand side by side as channels: 27 x 27
# tokens as before (S^2, as the released code has it). The target is the codes of the image at 384 pixels.
_base_ = ["./_base_next779k.py"]

model = dict(
    encoder=dict(_delete_=True, type="S2", encoder={{_base_.model.encoder}}, scales=[1, 2, 3]),
    reconstruction=[
        dict(
            name="semantic",
            tokenizer=dict(
                type="SemanticTokenizer",
                name="asvr/siglip-so400m-rvq8",
                depth=8,
                codebook_size=16384,
                encoder={{_base_.model.encoder}},
            ),
            head=dict(type="DepthTransformerHead", width=2048, layers=3, num_heads=16, activation_checkpointing="full"),
            loss=dict(type="CodeCrossEntropy"),
            weight=1.0,
            shift=1,
        )
    ],
)
