"""The benchmarks of the ASVR paper (arXiv 2506.09040v2, table 1) with their tasks in lmms-eval 0.7 and its numbers.

The authors used Cambrian-1's evaluation code with prompts of their own. lmms-eval asks and scores in another way. So
numbers measured here can be compared with one another, but only roughly with the paper's.
"""

import re
from dataclasses import dataclass
from pathlib import Path

TASKS = Path(__file__).parent / "tasks"  # tasks of this library, for benchmarks without a suitable task in lmms-eval
AVERAGE = "AVG"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark of the paper.

    column: its name in the paper's table. task: the task of lmms-eval. metrics: their mean times ``scale`` is the
    number in the table. note: what is measured, and what is not known about the paper's number. judge: what would ask a
    GPT model, and what is measured without one.
    """

    column: str
    name: str
    group: str
    task: str
    metrics: tuple[str, ...]
    scale: float = 100.0
    note: str
    judge: str = ""


OCR, GENERAL, KNOWLEDGE, VISION, HALLUCINATION = "OCR", "General", "Knowledge", "Visual-centric", "Hallucination"

PAPER = [
    Benchmark(
        column="TVQA",
        name="TextVQA",
        group=OCR,
        task="textvqa_val",
        metrics=("exact_match",),
        note="validation split, VQA accuracy; the question names no OCR tokens",
    ),
    Benchmark(
        column="DVQA",
        name="DocVQA",
        group=OCR,
        task="docvqa_val",
        metrics=("anls",),
        note="validation split, ANLS; answers of the test split are not public",
    ),
    Benchmark(
        column="OCRB",
        name="OCRBench",
        group=OCR,
        task="ocrbench",
        metrics=("ocrbench_accuracy",),
        note="right answers of 1,000 in percent",
    ),
    Benchmark(
        column="CQA",
        name="ChartQA",
        group=OCR,
        task="chartqa",
        metrics=("relaxed_overall",),
        note="relaxed accuracy over human and augmented questions",
    ),
    Benchmark(
        column="MMB",
        name="MMBench",
        group=GENERAL,
        task="mmbench_en_dev_static",
        metrics=("gpt_eval_score",),
        scale=1.0,
        note="English, dev split (the test split is scored by its own server)",
        judge="lmms-eval's mmbench_en_dev asks GPT which choice an answer means where it names none; here rules read "
        "such an answer, and it is wrong where they find no choice",
    ),
    Benchmark(
        column="MME",
        name="MME",
        group=GENERAL,
        task="mme",
        metrics=("mme_perception_score",),
        scale=1 / 20,
        note="perception score (of 2,000) divided by 20; the paper's figures are rescaled, it does not say how",
    ),
    Benchmark(
        column="SEED",
        name="SEED-Bench",
        group=GENERAL,
        task="asvr_seedbench_image",
        metrics=("seed_image",),
        note="lmms-eval's seedbench on the questions about one image, those about videos left out",
    ),
    Benchmark(
        column="GQA",
        name="GQA",
        group=GENERAL,
        task="gqa",
        metrics=("exact_match",),
        note="balanced testdev questions",
    ),
    Benchmark(
        column="MMMU",
        name="MMMU",
        group=KNOWLEDGE,
        task="mmmu_val",
        metrics=("mmmu_acc",),
        note="validation split",
    ),
    Benchmark(
        column="AI2D",
        name="AI2D",
        group=KNOWLEDGE,
        task="ai2d",
        metrics=("exact_match",),
        note="test split, choices by letter",
    ),
    Benchmark(
        column="RQA",
        name="RealWorldQA",
        group=VISION,
        task="realworldqa",
        metrics=("exact_match",),
        note="test split",
    ),
    Benchmark(
        column="MMVP",
        name="MMVP",
        group=VISION,
        task="mmvp",
        metrics=("mmvp_pair_accuracy",),
        note="pairs whose two questions are both right; lmms-eval's data set corrects the answers of two pairs",
    ),
    Benchmark(
        column="HBench",
        name="HallusionBench",
        group=HALLUCINATION,
        task="asvr_hallusion_bench_image",
        metrics=("aAcc", "qAcc", "fAcc"),
        note="questions with an image; mean of the accuracies by question, group of questions and image, the paper "
        "does not say which one its figure is",
        judge="lmms-eval's hallusion_bench_image asks GPT whether an answer agrees with the reference; here the "
        "question asks for yes or no, and an answer without 'yes' counts as no",
    ),
    Benchmark(
        column="POPE",
        name="POPE",
        group=HALLUCINATION,
        task="pope",
        metrics=("pope_accuracy",),
        note="accuracy over the random, popular and adversarial questions; F1 is in results.json",
    ),
]

# Vicuna-7B, SigLIP-SO400M, 558K and 665K samples.
PAPER_ROWS = {
    "LLaVA-1.5 (paper)": (56.0, 21.1, 31.3, 14.6, 64.0, 67.2, 63.8, 60.5, 32.7, 53.5, 52.0, 28.7, 23.9, 85.9, 46.8),
    "ASVR (paper)": (59.5, 24.3, 35.4, 16.4, 66.1, 72.8, 66.4, 61.5, 33.9, 57.0, 54.1, 30.0, 33.7, 86.3, 49.8),
}

# Tasks of lmms-eval that need a GPT judge, and tasks that measure the same without one. Other tasks with a judge are
# known by the names of their metrics (gpt_eval_score, gpt4_score, llm_as_judge_eval).
JUDGED = {"hallusion_bench_image": "asvr_hallusion_bench_image", "mmbench_en_dev": "mmbench_en_dev_static"}
JUDGES_METRIC = re.compile("gpt|llm_as_judge|llm_judge")


def paper_figures(results: dict[str, dict]) -> dict[str, float]:
    """The numbers by column, from lmms-eval's results by task. The average is included only if all are there."""
    figures = {}
    for benchmark in PAPER:
        values = [metric_value(results.get(benchmark.task, {}), metric) for metric in benchmark.metrics]
        if all(isinstance(value, int | float) for value in values):
            figures[benchmark.column] = sum(values) / len(values) * benchmark.scale
    if len(figures) == len(PAPER):
        figures[AVERAGE] = sum(figures.values()) / len(PAPER)
    return figures


def metric_value(result: dict, metric: str):
    """The value of a metric in a task's result. Its keys have lmms-eval's form ``metric,filter``."""
    return next((value for key, value in result.items() if key.split(",")[0] == metric), None)
