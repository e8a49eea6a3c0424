# small_asvr.py with targets of half resolution: of the 27 x 27 visual tokens, those in each second row and column are
# reconstructed (196 of 729). This is an approximation, and the head costs a quarter.
# python benchmarks/throughput.py configs/benchmarks/small_asvr.py --against configs/benchmarks/small_asvr_half.py
_base_ = ["./small_asvr.py"]

model = dict(
    reconstruction=[
        dict(
            name="semantic",
            tokenizer=dict(type="SemanticTokenizer", depth=8, codebook_size=4096),
            head=dict(type="DepthTransformerHead", width=256, layers=3, num_heads=4, activation_checkpointing="auto"),
            loss=dict(type="CodeCrossEntropy"),
            weight=1.0,
            shift=1,
            supervise=dict(cells=[27 * row + column for row in range(0, 27, 2) for column in range(0, 27, 2)]),
        )
    ]
)
