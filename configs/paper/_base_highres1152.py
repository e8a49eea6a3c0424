# Images of 1152 pixels. SigLIP reads them at three scales (384, 768, 1152), and their features are joined as channels
# (S^2, as in the released code). There are still 27 x 27 tokens. The target is the codes of the image at 384 pixels.
_base_ = ["./_base_next779k.py"]

model = dict(
    encoder=dict(_delete_=True, type="S2", encoder=_base_.model.encoder, scales=[1, 2, 3]),
    reconstruction=[
        dict(
            _base_.model.reconstruction[0],
            tokenizer=dict(_base_.model.reconstruction[0].tokenizer, encoder=_base_.model.encoder),
        )
    ],
)
