# Do reconstruction targets help a small model to understand images, and which of them? There are eight arms and a blind
# one, and three seeds. Semantic and pixel targets have one code of 256 for each visual token, the same head, tokenizers
# from the same images, and the same number of steps. Protocol and results: docs/studies/targets_mini.
# asvr study studies/targets_mini --jobs 2
_base_ = ["./_base_study.py"]
baseline = "none"
compare = [
    ("semantic", "pixel"),
    ("semantic", "semantic_shift0"),
    ("both", "semantic"),
    ("semantic", "semantic_in_finetune"),
    ("semantic", "semantic_in_pretrain"),
    ("semantic", "semantic_of_16"),
]
tokenizers = dict(pixel="../tokenizers/pixel_scenes.py")

_head = dict(type="DepthTransformerHead", width=64, layers=1, num_heads=4)
_semantic = dict(
    name="semantic",
    tokenizer=dict(type="SemanticTokenizer", depth=1, codebook_size=256),
    fit=dict(vectors_per_code=512, iterations=15),
    head=_head,
    loss=dict(type="CodeCrossEntropy"),
    weight=0.3,
    shift=1,
)
_pixel = dict(
    name="pixel",
    tokenizer=dict(type="PixelTokenizer", name="study:pixel", image_size=32),
    head=_head,
    loss=dict(type="CodeCrossEntropy"),
    weight=0.3,
    shift=1,
)


def _targets(*entries):
    return dict(model=dict(reconstruction=list(entries)))


_off = dict(_semantic, weight=0.0)
arms = dict(
    none=_targets(),
    semantic=_targets(_semantic),
    pixel=_targets(_pixel),
    semantic_shift0=_targets(dict(_semantic, shift=0)),
    both=_targets(_semantic, _pixel),
    semantic_in_finetune=dict(_targets(_semantic), stages=dict(pretrain=_targets(_off))),
    semantic_in_pretrain=dict(_targets(_semantic), stages=dict(finetune=_targets(_off))),
    semantic_of_16=_targets(dict(_semantic, supervise=16)),
    blind=dict(_targets(), data=dict(train=dict(with_images=False)), evaluation=dict(dataset=dict(with_images=False))),
)
