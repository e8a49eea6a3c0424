# Do images without text help in addition to 1,000 scenes with text? All arms start from an LLM that was trained as that
# of `which_target`. Arms with a target get 0, 1,000 or 4,000 further images, from which only the target learns. A step
# has 16 scenes with text on average, in every arm. The study is ready to run and has not been run.
# asvr study studies/caption_free --jobs 2
_base_ = ["./_base_study.py"]
baseline = "captioned"
decides = [("semantic_4x", "semantic_0x")]
compare = [("semantic_1x", "semantic_0x")]
shared = dict(words="./_base_words.py")


def _arm(further, **changes):
    """An arm with fewer steps than in which_target, because there are fewer scenes with text."""
    rows = 16 * (1 + further)  # of a step, with and without text
    data = dict(train=dict(scenes=1000 * (1 + further), with_text=1000), micro_batch=16, global_batch=rows)
    if further:
        data["group"] = "length"
    stages = dict(pretrain=dict(init="study:words", schedule=dict(steps=300)))
    return dict(data=data, schedule=dict(steps=600), stages=stages, **changes)


# The target is that of configs/scenes_mini.py.
arms = dict(
    captioned=_arm(0, model=dict(reconstruction=[])), semantic_0x=_arm(0), semantic_1x=_arm(1), semantic_4x=_arm(4)
)
