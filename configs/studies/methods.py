# A comparison of methods of visual supervision: one recipe each (configs/targets/scenes), with the same data, steps and
# seeds. Every arm except the first adds its target to the same model. In JARVIS and LaVer visual tokens also see each
# other. Two arms do only this, without and with ASVR's target. The study is ready to run and has not been run.
# asvr study studies/methods --jobs 2
_base_ = ["./_base_study.py"]
baseline = "none"
tokenizers = dict(pixel="../tokenizers/pixel_scenes.py", vae="../tokenizers/vae_scenes.py")
compare = [
    ("asvr", "appearance"),
    ("asvr", "pixel"),
    ("asvr", "soft_codes"),
    ("asvr", "multi_codebook"),
    ("asvr", "shared_vocabulary"),
    ("asvr", "viral"),
    ("asvr", "metamorph"),
    ("asvr", "ross"),
    ("jarvis", "bidirectional"),
    ("laver", "bidirectional"),
    ("bidirectional_asvr", "bidirectional"),
]

_bidirectional = dict(visual_attention="bidirectional")
arms = dict(
    none=dict(model=dict(reconstruction=[])),
    asvr="../targets/scenes/asvr.py",
    appearance="../targets/scenes/appearance.py",
    pixel=dict(
        config="../targets/scenes/pixel.py",
        model=dict(reconstruction={"0": dict(tokenizer=dict(name="study:pixel"))}),
    ),
    dual="../targets/scenes/dual.py",
    soft_codes="../targets/scenes/soft_codes.py",
    multi_codebook="../targets/scenes/multi_codebook.py",
    shared_vocabulary="../targets/scenes/shared_vocabulary.py",
    viral="../targets/scenes/viral.py",
    metamorph="../targets/scenes/metamorph.py",
    vdep="../targets/scenes/vdep.py",
    gas="../targets/scenes/gas.py",
    ross=dict(
        config="../targets/scenes/ross.py",
        model=dict(reconstruction={"0": dict(teacher=dict(name="study:vae"))}),
    ),
    several="../targets/scenes/several.py",
    bidirectional=dict(model=dict(reconstruction=[], **_bidirectional)),
    bidirectional_asvr=dict(config="../targets/scenes/asvr.py", model=_bidirectional),
    jarvis="../targets/scenes/jarvis.py",
    laver="../targets/scenes/laver.py",
)
