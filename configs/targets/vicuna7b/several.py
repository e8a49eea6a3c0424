# Several targets at once, with each kind of weight, on the 7B base. The semantic codes have a constant weight in both
# stages. The appearance codes have weight 0 in the first stage. Their weight grows from 0 to 1 in the first half of
# the second stage. This follows no paper. It shows how to set weights. The codes are those of
# configs/asvr_vicuna7b_dual.py.
# asvr train targets/vicuna7b/several
_base_ = ["../../asvr_vicuna7b_dual.py"]

model = dict(
    reconstruction=[
        _base_.model.reconstruction[0],
        dict(_base_.model.reconstruction[1], weight=dict(begin=0.0, end=1.0, until=0.5)),
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
