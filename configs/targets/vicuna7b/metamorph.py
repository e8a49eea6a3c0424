# MetaMorph's visual prediction on the 7B base: the state before a visual token tells SigLIP's features, by cosine.
# It follows arXiv 2412.14164 and the released code (metamorph/model/language_model/metamorph_llama.py with
# scripts/finetune_1node.sh): after the final norm, an MLP of three layers with GELU as wide as the LLM, weight 1, in
# finetune alone.
# What differs: all images carry the loss, not those of answers alone, since here an image stands in the question.
# SigLIP's features are those of layer -2 at 27 x 27 tokens, not of the last one at 8 x 8. The LLM is Vicuna-7B, not
# Llama-3-8B, and there are no images to draw among the data.
# python tools/train.py configs/targets/vicuna7b/metamorph.py
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
