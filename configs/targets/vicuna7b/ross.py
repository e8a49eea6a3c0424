# ROSS on the 7B base: a denoising head (a DiT of 3 blocks) gets the final hidden states of an image's tokens, and
# predicts the noise in FLUX.1-dev's VAE latents of the whole image (arXiv 2410.09575; the released code's
# ross/model/ross_arch.py and ross/model/multimodal_denoiser/denoiser_dit.py). As there: 432 pixels give 27 x 27 tokens
# of 64 latents. The cosine schedule has 1,000 steps, and 4 of them are drawn for each image. Text and latents have the
# same weight. The head has a learning rate of 1e-4 in the first stage.
# What differs: the mean of the VAE's posterior replaces a sample, so that it can be cached. The VAE's pixels are
# resized from the image itself (bicubic), not from the encoder's pixels. The head computes in the run's precision, not
# in float32. The LLM is Vicuna-7B with LLaVA-1.5's data (released recipes: Vicuna-13B or Qwen2-7B and Cambrian's 737K).
#   hf download black-forest-labs/FLUX.1-dev --include 'vae/*'
# asvr train targets/vicuna7b/ross
_base_ = ["../../llava_vicuna7b.py"]

model = dict(
    reconstruction=[
        dict(
            name="latents",
            type="DenoisingTarget",
            teacher=dict(
                type="LatentEncoder",
                name="black-forest-labs/FLUX.1-dev",
                subfolder="vae",
                arch=dict(
                    block_out_channels=[128, 256, 512, 512],
                    layers_per_block=2,
                    latent_channels=16,
                    use_quant_conv=False,
                    use_post_quant_conv=False,
                    scaling_factor=0.3611,
                    shift_factor=0.1159,
                    sample_size=1024,
                ),
            ),
            width=1024,
            layers=3,
            num_heads=16,
            times=4,
            weight=1.0,
            shift=0,
        )
    ]
)

stages = dict(pretrain=dict(optim=dict(groups=dict(heads=dict(lr_scale=0.1)))))  # 1e-4, the projector 1e-3
