# ROSS: a denoising head (DiT of 3 blocks) tells the noise in FLUX.1-dev's VAE latents of the whole image, from the
# final hidden states at its tokens (arXiv 2410.09575; the released code's ross/model/ross_arch.py and
# ross/model/multimodal_denoiser/denoiser_dit.py). As there: 432 pixels give 27 x 27 tokens of 64 latents, a cosine
# schedule of 1,000 steps, 4 of them an image, text and latents weighted 1:1, and a rate of 1e-4 for the head in the
# first stage.
# What differs: the mean of the VAE's posterior in place of a sample, so that it can be cached; the VAE's pixels are
# resized from the image itself (bicubic), not from the encoder's pixels; the head computes in the run's precision, not
# in float32; Vicuna-7B and LLaVA-1.5's data (the released recipes: Vicuna-13B or Qwen2-7B and Cambrian's 737K).
#   hf download black-forest-labs/FLUX.1-dev --include 'vae/*'
# python tools/train.py configs/targets/vicuna7b/ross.py
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
