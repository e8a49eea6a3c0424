# ASVR on one card of 141 GB. asvr_vicuna7b.py fits too. Differs from it: the LLM is trained in bfloat16 (the optimiser
# keeps the bits that it lacks), and the moments are bfloat16. The memory that this frees holds the results of products
# and larger micro-batches.
# asvr train asvr_vicuna7b_141gb
_base_ = ["./asvr_vicuna7b.py"]

stages = dict(
    finetune=dict(
        model=dict(llm=dict(dtype="bfloat16", activation_checkpointing="selective")),
        data=dict(micro_batch=4),
        optim=dict(moments="bfloat16"),
    )
)
