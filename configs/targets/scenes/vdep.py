# VDEP on the scenes: the hidden state before a visual token predicts the token's input embedding (the projector's
# output), without a head. It follows the abstract of arXiv 2502.09093. We know of no released code. Our choices,
# because we do not know the paper's: the form of the regression (here the mean squared difference), its weight alpha
# (here 1), and whether the embeddings get a gradient from it (here not).
# What differs: the paper alternates steps with and without the images' loss. Here every step has it.
# asvr train targets/scenes/vdep
_base_ = ["../../studies/_base_scenes.py"]

model = dict(reconstruction=[dict(name="vdep", type="EmbeddingTarget", loss=dict(type="MSELoss"), weight=1.0, shift=1)])
