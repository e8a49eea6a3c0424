# Do pictures without any text help beside a small set with text? The same 1,000 scenes with captions and questions in
# both arms; the second has a semantic target and 2,000 more pictures, of which it sees the visual loss alone. A step
# holds as many scenes with text in both, on average. The protocol and what came out: docs/studies/caption_free_mini.
# python tools/study.py configs/studies/caption_free_mini.py --jobs 2
config = './_base_scenes.py'
seeds = [0, 1, 2]
baseline = 'captioned'
groups = dict(
    general=['what', 'count'],
    ocr=['word'],
    knowledge=['knowledge'],
    visual=['where', 'color'],
    hallucination=['exists'])

_semantic = dict(
    name='semantic',
    tokenizer=dict(type='SemanticTokenizer', depth=1, codebook_size=256),
    fit=dict(vectors_per_code=512, iterations=15),
    head=dict(type='DepthTransformerHead', width=64, layers=1, num_heads=4),
    loss=dict(type='CodeCrossEntropy'),
    weight=0.3,
    shift=1)
_few = dict(train=dict(scenes=1000))
_more = dict(train=dict(scenes=3000, with_text=1000), micro_batch=16, global_batch=48, group='length')


def _arm(data, *targets):
    """Half the steps of targets_mini: ten times through the scenes with text."""
    return dict(
        data=data,
        model=dict(reconstruction=list(targets)),
        schedule=dict(steps=600),
        stages=dict(pretrain=dict(schedule=dict(steps=300))))


arms = dict(
    captioned=_arm(_few),
    more_pictures=_arm(_more, _semantic))
