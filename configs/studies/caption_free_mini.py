# Do images without any text help beside a small set with text? The same 1,000 scenes with captions and questions in
# all arms; two have a semantic target, and one of them 2,000 more images, of which it sees the visual loss alone. In
# every arm a step holds 16 scenes with text, on average. Protocol and what came out: docs/studies/caption_free_mini.
# python tools/study.py configs/studies/caption_free_mini.py --jobs 2
_base_ = ["./_base_study.py"]
baseline = "captioned"
compare = [("more_images", "with_target")]

_few = dict(train=dict(scenes=1000))
_more = dict(train=dict(scenes=3000, with_text=1000), micro_batch=16, global_batch=48, group="length")


def _arm(data, **changes):
    """Fewer steps than in targets_mini: there are fewer scenes with text."""
    return dict(data=data, schedule=dict(steps=1200), stages=dict(pretrain=dict(schedule=dict(steps=500))), **changes)


arms = dict(
    captioned=_arm(_few, model=dict(reconstruction=[])), with_target=_arm(_few), more_images=_arm(_more)
)  # with the target of configs/scenes_mini.py
