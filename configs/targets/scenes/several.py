# Several targets at once, with each kind of weight, on the scenes. The semantic codes of asvr.py have a constant weight
# in both stages. The appearance codes of appearance.py have weight 0 in the first stage. Their weight grows from 0 to
# 0.3 in the first half of the second stage. This follows no paper. It shows how to set weights.
# asvr train targets/scenes/several
_base_ = ["./dual.py"]

model = dict(
    reconstruction=[
        _base_.model.reconstruction[0],
        dict(_base_.model.reconstruction[1], weight=dict(begin=0.0, end=0.3, until=0.5)),
    ]
)
stages = dict(
    pretrain=dict(
        model=dict(
            reconstruction=[
                _base_.model.reconstruction[0],
                dict(_base_.model.reconstruction[1], weight=0.0),
            ]
        )
    )
)
