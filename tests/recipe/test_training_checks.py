"""Mistakes in what trains a model, each told in one line."""

import pytest
from test_validate import config, problems

from asvr.recipe.validate import check_config


def schedulers(*entries: dict) -> dict:
    return dict(_delete_=True, steps=2, param_schedulers=list(entries))


def optim(kind: str, **settings) -> dict:
    return dict(_delete_=True, type=kind, lr=1e-3, clip_grad=1.0, precision="bf16", **settings)


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"optim.type": "AdmW"}, "optim.type='AdmW': no such optimizer; did you mean 'AdamW'"),
        ({"optim.type": "LBFGS"}, "optim.type='LBFGS': it computes the loss several times in a step; take another"),
        ({"optim.type": "nowhere.optim.AdamW8bit"}, "optim.type='nowhere.optim.AdamW8bit' needs nowhere: pip install"),
        ({"optim.clip_gard": 1.0}, "optim.clip_gard: AdamW has no such field; did you mean 'clip_grad'?"),
        ({"optim.momentum": 0.9}, "optim.momentum: AdamW has no such field"),
        ({"optim.betas": [0.9, 1.5]}, "optim.betas=[0.9, 1.5]: expected two numbers from 0 to below 1"),
        (
            {"optim": optim("Rprop", weight_decay=0.1)},
            "optim.weight_decay=0.1: Rprop has no weight decay; leave it out, or set 0",
        ),
        ({"optim": optim("SGD", betas=[0.9, 0.99])}, "optim.betas: SGD has no such field"),
        ({"optim": optim("SGD", fused="yes")}, "optim.fused='yes': expected bool | None"),
        ({"optim.lr": None}, "optim.lr=None: expected a number above 0"),
        (
            {"optim.groups": dict(head=dict(lr_scale=2.0))},
            "optim.groups={'head': {'lr_scale': 2.0}}: expected a dict with a dict for",
        ),
        (
            {"optim.groups": dict(heads=dict(lrscale=2.0))},
            "optim.groups.heads.lrscale: unknown field; did you mean 'lr_sc",
        ),
        (
            {"optim.groups": dict(llm=dict(layer_decay=0))},
            "optim.groups.llm.layer_decay=0: expected a number above 0, at",
        ),
        (
            {"optim.groups": dict(heads=dict(layer_decay=0.9))},
            "optim.groups.heads.layer_decay: only llm and encoder can",
        ),
        (
            {"optim.groups": dict(llm=dict(freeze=True))},
            "optim.groups.llm.freeze: no such field, since `train` of the stage says what is trained: leave",
        ),
        (
            {"optim.groups": dict(encoder=dict(muon=False))},
            "optim.groups.encoder.muon: only optim.type='Muon' has this field; leave it out",
        ),
        (
            {"optim.type": "Muon", "optim.groups": dict(encoder=dict(muon=0))},
            "optim.groups.encoder.muon=0: expected True or False",
        ),
        (
            {"optim.groups": dict(llm=dict(lr_scale=2.0)), "optim.lr_scale": dict(llm=1.0)},
            "optim.groups.llm.lr_scale: optim.lr_scale.llm is given too; leave one of them out",
        ),
        ({"schedule.preset": "wds"}, "schedule.preset='wds': expected one of 'cosine', 'linear', 'constant', 'wsd'"),
        ({"schedule.preset": "wsd"}, "schedule.decay_ratio is missing: expected the part of the steps"),
        ({"schedule.decay_ratio": 0.5}, "schedule.decay_ratio: preset='cosine' does not have it; leave it out, or use"),
        (
            {"schedule": dict(preset="constant", min_lr_ratio=0.1)},
            "schedule.min_lr_ratio: with preset='constant' the rate never falls",
        ),
        (
            {"schedule": dict(preset="wsd", warmup_ratio=0.6, decay_ratio=0.5)},
            "schedule: warmup_ratio and decay_ratio add up to 1.1; expected at most 1",
        ),
        ({"schedule.warmup": 1}, "schedule.warmup: unknown field; did you mean 'warmup_ratio'?"),
        (
            {"schedule.param_schedulers": [dict(type="LinearLR")]},
            "schedule.warmup_ratio: it belongs to a preset, but param_schedulers are given too; leave one of them out",
        ),
        (
            {"schedule": schedulers(dict(type="LinerLR"))},
            "schedule.param_schedulers[0].type='LinerLR': no such parameter scheduler; did you mean 'LinearLR'",
        ),
        (
            {"schedule": schedulers(dict(type="LinearLR", start=0.1))},
            "schedule.param_schedulers[0].start: LinearLR has no such field; known: begin",
        ),
        (
            {"schedule": schedulers(dict(type="MultiStepLR"))},
            "schedule.param_schedulers[0].milestones is missing: Multi",
        ),
        (
            {"schedule": schedulers(dict(type="LinearLR", end=1.5))},
            "schedule.param_schedulers[0].end=1.5: expected a fraction of all steps, 0.0 to 1.0, or a whole number",
        ),
        (
            {"schedule": schedulers(dict(type="LinearLR", by_epoch=True))},
            "by_epoch: schedules count optimisation steps",
        ),
        (
            {"schedule": schedulers(dict(type="ReduceOnPlateauLR"))},
            "it needs MMEngine's own validation loop; use another",
        ),
        (
            {"custom_hooks": dict(type="ProfilerHook")},
            "custom_hooks={'type': 'ProfilerHook'}: expected a list of hooks",
        ),
        (
            {"custom_hooks": [dict(type="ProfileHook")]},
            "custom_hooks[0].type='ProfileHook': no such hook; did you mean",
        ),
        (
            {"custom_hooks": [dict(type="ProfilerHook", by_epok=1)]},
            "custom_hooks[0].by_epok: ProfilerHook has no such fie",
        ),
        (
            {"custom_hooks": [dict(type="EMAHook")]},
            "custom_hooks[0].type='EMAHook': it needs MMEngine's own training loop",
        ),
        (
            {"custom_hooks": [dict(type="SkipHook", stage="a", interval=1, limit=1)]},
            "the library adds this hook itself",
        ),
        (
            {"visualizer": dict(type="Visualizer")},
            "visualizer={'type': 'Visualizer'}: expected dict(vis_backends=[dict(",
        ),
        (
            {"visualizer": dict(vis_backends=[dict(type="TensorBoard")])},
            "visualizer.vis_backends[0].type='TensorBoard': no such visualizer backend; did you mean 'Tensor",
        ),
        (
            {"visualizer": dict(vis_backends=[dict(type="LocalVisBackend", dir="x")])},
            "visualizer.vis_backends[0].dir: LocalVisBackend has no such field",
        ),
        (
            {"visualizer": dict(vis_backends=[dict(type="LocalVisBackend")] * 2)},
            "visualizer.vis_backends: each type may be given once",
        ),
        (
            {"visualizer": dict(vis_backends=[], save_dir="x")},
            "visualizer.save_dir: unknown field; known: vis_backends",
        ),
        ({"runtime.ema": 0.99}, "runtime.ema=0.99: expected dict(decay=...), or None"),
        ({"runtime.ema": dict(decay=1.0)}, "runtime.ema.decay=1.0: expected a number from 0 to below 1"),
        (
            {"runtime.ema": dict(decay=0.9, evalute=True)},
            "runtime.ema.evalute: unknown field; did you mean 'evaluate'?",
        ),
    ],
)
def test_a_mistake_in_what_trains_is_one_line(change, problem):
    found = problems(config(**change))
    assert any(problem in line for line in found), found
    assert len(found) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"optim": optim("SGD", momentum=0.9, groups=dict(encoder=dict(layer_decay=0.8)))},
        {"optim": optim("Muon", adjust_lr_fn=None, weight_decay=0.1)},
        {"schedule": dict(_delete_=True, epochs=1, preset="wsd", warmup_ratio=0, decay_ratio=0.2)},
        {"schedule": schedulers(dict(type="MultiStepLR", milestones=[0.5, 7], gamma=0.1))},
        {"runtime.ema": dict(decay=0.9, evaluate=True)},
        {"custom_hooks": [dict(type="EmptyCacheHook", after_iter=True, priority="LOW")]},
        {"custom_hooks": None, "visualizer": None, "runtime.ema": None},
    ],
)
def test_what_is_right_is_accepted(change):
    check_config(config(**change))
