# vicuna7b_llava.py with the semantic target of the recipe. The head is compiled too, and keeps the results of its
# products.
# python benchmarks/throughput.py configs/benchmarks/vicuna7b_asvr.py --against configs/benchmarks/vicuna7b_llava.py
_base_ = ["./vicuna7b_llava.py"]

model = dict(
    reconstruction=[
        dict(
            name="semantic",
            tokenizer=dict(type="SemanticTokenizer", name="asvr/siglip-so400m-rvq8", depth=8, codebook_size=16384),
            head=dict(type="DepthTransformerHead", width=2048, layers=3, num_heads=16),
            loss=dict(type="CodeCrossEntropy"),
            weight=1.0,
            shift=1,
        )
    ]
)
