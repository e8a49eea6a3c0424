# A target with codes of pooled features at every fourth position, examples/pooled_codes.py.
# asvr train examples/pooled_codes
_base_ = ["./custom_components.py"]

custom_imports = dict(imports=["examples.my_components", "examples.pooled_codes"], allow_failed_imports=False)
model = dict(
    reconstruction=[
        dict(
            name="pooled",
            type="PooledCodes",
            tokenizer=dict(type="SemanticTokenizer", depth=2, codebook_size=64),
            fit=dict(iterations=5),
            head=dict(type="AdditiveHead", width=64),
            shift=1,
        )
    ]
)
