# MetaMorph's visual prediction on the 7B base: the hidden state before a visual token predicts SigLIP's features of the
# token, with a cosine loss. It follows arXiv 2412.14164 and the released code
# (metamorph/model/language_model/metamorph_llama.py with scripts/finetune_1node.sh): after the final norm, an MLP of
# three layers with GELU as wide as the LLM, weight 1, only in finetune.
# What differs: all images have the loss, because here images are in questions. The released code has it only for images
# in answers. SigLIP's features are those of layer -2 with 27 x 27 tokens, not of the last layer with 8 x 8. The LLM is
# Vicuna-7B, not Llama-3-8B. The data have no images that the model should generate.
# asvr train targets/vicuna7b/metamorph
_base_ = ["../../llava_vicuna7b.py"]

stages = dict(
    finetune=dict(
        model=dict(
            reconstruction=[
                dict(
                    name="metamorph",
                    type="FeatureTarget",
                    mlp=dict(layers=3, activation="gelu"),
                    loss=dict(type="CosineLoss"),
                    weight=1.0,
                    shift=1,
                )
            ]
        ),
    ),
)
