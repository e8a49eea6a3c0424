# Do images without any text help in addition to a small set with text? All arms have the same 1,000 scenes with
# captions and questions. Two arms have a semantic target. One of these has 2,000 more images, and they have only the
# visual loss. In every arm a step has 16 scenes with text on average. Protocol and results:
# docs/studies/caption_free_mini.
# asvr study studies/caption_free_mini --jobs 2
_base_ = ["./_base_study.py"]
baseline = "captioned"
compare = [("more_images", "with_target")]

_few = dict(train=dict(scenes=1000))
_more = dict(train=dict(scenes=3000, with_text=1000), micro_batch=16, global_batch=48, group="length")


def _arm(data, **changes):
    """An arm with fewer steps than in targets_mini, because there are fewer scenes with text."""
    return dict(data=data, schedule=dict(steps=1200), stages=dict(pretrain=dict(schedule=dict(steps=500))), **changes)


arms = dict(
    captioned=_arm(_few, model=dict(reconstruction=[])), with_target=_arm(_few), more_images=_arm(_more)
)  # with the target of configs/scenes_mini.py
