"""The paper's benchmarks: its figures, ours from lmms-eval's results, and the table that has both."""

import pytest

from asvr.benchmarks.paper import AVERAGE, JUDGED, PAPER, PAPER_ROWS, paper_figures
from asvr.benchmarks.report import markdown, paper_table


def results(value: float = 0.5) -> dict[str, dict]:
    """As lmms-eval gives them: every metric of every task."""
    found = {b.task: {f"{metric},none": value for metric in b.metrics} for b in PAPER}
    found["mme"]["mme_perception_score,none"] = 1456.0
    found["mmbench_en_dev_static"]["gpt_eval_score,none"] = 66.1
    return found


def test_the_papers_rows_are_whole():
    assert len(PAPER) == len({b.column for b in PAPER}) == len({b.task for b in PAPER}) == 14
    for values in PAPER_ROWS.values():
        assert len(values) == 15
        assert values[-1] == pytest.approx(sum(values[:-1]) / 14, abs=0.05)  # the paper's own average


def test_our_figures_are_in_the_papers_units():
    figures = paper_figures(results())
    assert figures["MME"] == pytest.approx(72.8) and figures["MMB"] == pytest.approx(66.1)
    assert figures["TVQA"] == figures["HBench"] == 50.0
    assert figures[AVERAGE] == pytest.approx((72.8 + 66.1 + 12 * 50) / 14)


def test_several_metrics_are_averaged_under_whatever_filter():
    found = dict(asvr_hallusion_bench_image={"aAcc,none": 0.5, "qAcc,none": 0.2, "fAcc,none": 0.05})
    found["ai2d"] = {"alias": "ai2d", "exact_match_stderr,flexible-extract": 0.9, "exact_match,flexible-extract": 0.4}
    assert paper_figures(found) == {"HBench": pytest.approx(25.0), "AI2D": pytest.approx(40.0)}


def test_what_has_not_run_is_left_out_and_there_is_no_average():
    found = results()
    found["pope"] = {"pope_f1_score,none": 0.9}
    figures = paper_figures(found)
    assert figures.keys() == {b.column for b in PAPER} - {"POPE"}


def test_the_table_has_the_papers_rows_and_ours():
    lines = paper_table({"mine": paper_figures(dict(pope={"pope_accuracy,none": 0.8125}))}).splitlines()
    assert lines[0] == lines[-1] == "```"
    groups, columns, *rows = [[cell.split() for cell in line.split("|")] for line in lines[1:-1]]
    assert groups == [[], ["OCR"], ["General"], ["Knowledge"], ["Visual-centric"], ["Hallucination"], []]
    by_group = [[b.column for b in PAPER if [b.group] == group] for group in groups[1:-1]]
    assert columns == [[], *by_group, ["AVG"]] and sum(map(len, by_group)) == 14
    assert [" ".join(row[0]) for row in rows] == [*PAPER_ROWS, "mine"]
    for row, values in zip(rows[:-1], PAPER_ROWS.values(), strict=True):
        assert [float(cell) for cells in row[1:] for cell in cells] == list(values)
    assert [cell for cells in rows[-1][1:] for cell in cells] == [*["-"] * 13, "81.2", "-"]
    assert len({len(line) for line in lines[2:-1]}) == 1, "figures stand in columns"


def report(**changes) -> str:
    task = dict(
        results=dict(pope={"alias": "pope", "pope_accuracy,none": 0.75, "pope_accuracy_stderr,none": 0.01}),
    )
    task["n-samples"] = dict(pope=dict(original=9000, effective=100))
    found = dict(
        model=dict(folder="models/mine", stage=None, weights="abcdef0123456789"),
        versions={"asvr": "1", "lmms-eval": "0.7.3"},
        settings=dict(limit=100, batch_size=1, device="auto"),
        tasks=dict(pope=task),
        failed={},
        missing=[],
        changed=[],
        unchecked=[],
    )
    return markdown(found | changes)


def test_the_report_says_what_ran_on_what():
    text = report(failed=dict(mme="OSError: no room"), missing=["gqa"], changed=["mine"], unchecked=["pope"])
    assert text.startswith(
        "# models/mine\n\nthe first 100 questions of each task; weights abcdef012345; asvr 1, lmms-eval"
    )
    assert "mine (first 100)" in text and " 75.0 " in text
    assert "| pope | pope_accuracy | 0.7500 | 0.0100 | 100 |" in text
    assert "## Failed\n\n- mme: OSError: no room\n" in text
    assert "## Left out, because their data are not on this machine\n\n- gqa\n" in text
    assert "## Results of an earlier command, not checked\n\n- pope\n\nTheir tasks are in none of the folders" in text
    assert text.endswith("## Left out, because they have changed since they ran\n\n- mine\n")
    for benchmark in PAPER:
        assert f"| {benchmark.column} | {benchmark.name} | {benchmark.task} |" in text
    assert "asks GPT" in text


def test_tasks_of_ones_own_have_no_paper_table():
    task = {"results": {"mine": {"acc,none": 0.5}}, "n-samples": {"mine": {"effective": 3}}}
    text = report(tasks=dict(mine=task))
    assert "paper" not in text and "| mine | acc | 0.5000 | - | 3 |" in text


def test_no_benchmark_of_the_preset_needs_a_judge():
    assert not {b.task for b in PAPER} & JUDGED.keys()
    assert set(JUDGED.values()) <= {b.task for b in PAPER}
