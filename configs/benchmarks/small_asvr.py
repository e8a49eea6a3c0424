# The sizes of small_llava.py with a semantic target: 8 codes of 4,096 for each visual token, a head of width 256.
# python benchmarks/throughput.py configs/benchmarks/small_asvr.py --plain
_base_ = ["./small_llava.py"]

model = dict(
    reconstruction=[
        dict(
            name="semantic",
            tokenizer=dict(type="SemanticTokenizer", depth=8, codebook_size=4096),
            head=dict(type="DepthTransformerHead", width=256, layers=3, num_heads=4, activation_checkpointing="auto"),
            loss=dict(type="CodeCrossEntropy"),
            weight=1.0,
            shift=1,
        )
    ]
)
