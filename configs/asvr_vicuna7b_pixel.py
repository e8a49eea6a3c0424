# A pixel target: the codes of Janus' VQGAN (LlamaGen's VQ-16), one for each token. 432 pixels give SigLIP's 27 x 27.
# It is not in the paper. The paper's appearance codes come from SigLIP's 6th layer (asvr_vicuna7b_appearance.py).
# First make the tokenizer's folder from a Janus model. The same command also reads LlamaGen's vq_ds16_c2i.pt:
#   hf download deepseek-community/Janus-Pro-1B --local-dir Janus-Pro-1B
#   asvr convert import Janus-Pro-1B models/janus-vq16 --image-size 432
# asvr train asvr_vicuna7b_pixel
_base_ = ["./llava_vicuna7b.py"]

model = dict(
    reconstruction=[
        dict(
            name="pixel",
            tokenizer=dict(
                type="PixelTokenizer",
                name="./models/janus-vq16",
                image_size=432,
                arch=dict(
                    embed_dim=8,
                    num_embeddings=16384,
                    latent_channels=256,
                    base_channels=128,
                    channel_multiplier=[1, 1, 2, 2, 4],
                    num_res_blocks=2,
                ),
            ),
            head=dict(type="DepthTransformerHead", width=2048, layers=3, num_heads=16, activation_checkpointing="full"),
            loss=dict(type="CodeCrossEntropy"),
            weight=1.0,
            shift=1,
        )
    ]
)
