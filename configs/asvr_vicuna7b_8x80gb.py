# ASVR on eight cards of 80 GB. Differs from asvr_vicuna7b.py: FSDP2 shares weights, gradients and optimiser states
# among the cards. The memory that this frees holds the results of products and larger micro-batches.
# torchrun --standalone --nproc-per-node=8 -m asvr train asvr_vicuna7b_8x80gb
_base_ = ["./asvr_vicuna7b.py"]

parallel = dict(type="FSDP2", param_dtype="bfloat16", reduce_dtype="float32")
stages = dict(
    finetune=dict(
        model=dict(llm=dict(activation_checkpointing="selective")),
        data=dict(micro_batch=4),
    )
)
