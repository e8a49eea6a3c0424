# The sizes of small_asvr.py, made smaller, to measure how time and memory grow with one size at a time.
# python benchmarks/growth.py --out benchmarks/results/growth
_base_ = ["./small_asvr.py"]

model = dict(
    encoder=dict(arch=dict(hidden_size=64, intermediate_size=256, num_hidden_layers=8, num_attention_heads=2)),
    llm=dict(
        activation_checkpointing="full",
        arch=dict(hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4),
    ),
    reconstruction=[
        dict(
            name="semantic",
            tokenizer=dict(type="SemanticTokenizer", depth=8, codebook_size=1024),
            head=dict(type="DepthTransformerHead", width=128, layers=3, num_heads=2, activation_checkpointing="full"),
            loss=dict(type="CodeCrossEntropy"),
            weight=1.0,
            shift=1,
        )
    ],
)
data = dict(max_length=4096)
