# VDEP on the scenes: the hidden state before a visual token is drawn to the embedding that enters there (what the
# projector gives), without a head. It follows the abstract of arXiv 2502.09093; we know of no released code.
# What differs, or is not known to us: the form of the regression (here the mean squared difference), its weight alpha
# (here 1) and whether a gradient goes into the embeddings (here none) are choices. The paper takes steps with the
# images' loss and steps without it by turns; here it is there in each step.
# python tools/train.py configs/targets/scenes/vdep.py
_base_ = ["../../studies/_base_scenes.py"]

model = dict(reconstruction=[dict(name="vdep", type="EmbeddingTarget", loss=dict(type="MSELoss"), weight=1.0, shift=1)])
