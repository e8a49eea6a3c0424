"""tools/check_data.py tells of every bad record before a run, in processes as in one, and its exit code says so."""

import json
import os
import signal

import pytest
from PIL import Image
from run_helpers import call_tool

from asvr.data.check import CHUNK, Source, bin_of, scan
from asvr.data.refusals import Refusal

TOOL = "tools/check_data.py"


def turns(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


@pytest.fixture
def data(tmp_path):
    """Ten bad records among good and odd ones."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, options in (("a.png", {}), ("jpeg.png", dict(format="JPEG")), ("turned.jpg", dict(exif=exif))):
        Image.new("RGB", (40, 30), "red").save(tmp_path / name, **options)
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    good = [dict(image=name, conversations=turns("what?", "red")) for name in ("a.png", "jpeg.png", "turned.jpg")]
    good += [dict(conversations=turns("what?", "red " * 400))]
    bad = [dict(image="no.png"), dict(image="../a.png"), dict(image="cut.png"), dict(conversations=turns("what?"))]
    bad += ["{not json}", *[dict(image="cut.png")] * 5]
    lines = [record if isinstance(record, str) else json.dumps(record) for record in [*good * 40, *bad]]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    return tmp_path


def run(folder, *arguments):
    """On a config with one stage, whose data are the folder's."""
    base = os.path.abspath("configs/asvr_mini.py")
    config = folder / "own.py"
    config.write_text(
        f"_base_ = [{base!r}]\n"
        "stages = dict(_delete_=True, only=dict(init='scratch', train=['llm'], evaluation=None))\n"
        f"data = dict(train=dict(_delete_=True, type='LlavaDataset', ann_file={str(folder / 'data.jsonl')!r}))\n"
        "text_tokenizer = dict(corpus=dict(max_images=12))\n"
    )
    return call_tool(TOOL, config, "--out", folder / "out", *arguments)


REFUSED = {"missing image": 1, "outside image_folder": 1, "unreadable image": 6, "no answer": 1, "malformed": 1}
NOTED = {"wrong extension": 40, "EXIF-rotated, used as stored": 40, "cut by max_length": 40}


@pytest.mark.parametrize("workers", [0, 2])
def test_all_that_is_wrong_is_told(data, workers):
    done = run(data, "--workers", workers)
    assert done.returncode == 3, done.stderr
    report = json.loads((data / "out/report.json").read_text())["only: data.train"]
    assert (report["refused"], report["noted"]) == (REFUSED, NOTED)
    assert (report["records"], report["pictures"], sum(report["sides"].values())) == (170, 126, 120)
    assert report["sides"] == {str(bin_of(40)): 120}
    assert "170 records, 126 images, 10 refused" in done.stdout
    assert "refused: unreadable image: 6\n" in done.stdout and "and 3 more in records.jsonl" in done.stdout
    lines = [json.loads(line) for line in (data / "out/records.jsonl").read_text().splitlines()]
    bad = {line["record"].rpartition(":")[2] for line in lines if line["kind"] == "refused"}
    assert bad == {str(i) for i in range(160, 170)} and len(lines) == 130
    assert all(f"{data / 'data.jsonl'}" in line["message"] for line in lines)
    with Image.open(data / "out/sizes.png") as picture:
        assert picture.width > 500


def test_good_data_give_zero_and_headers_are_faster_but_see_less(data):
    assert run(data, "--limit", 160, "--workers", 0).returncode == 0
    assert run(data, "--headers-only", "--workers", 0).returncode == 3
    report = json.loads((data / "out/report.json").read_text())["only: data.train"]
    assert report["refused"] == {key: n for key, n in REFUSED.items() if key != "unreadable image"}


def test_wrong_commands_and_files_are_told(data):
    for arguments, message in {
        ("--stage", "none"): "--stage none: expected one of only",
        ("--template", "plain"): "--template can only be used with --ann-file",
        ("--ann-file", "x"): "give a CONFIG or an --ann-file",
        ("--cfg-options", "data.train.ann_file=none.json"): "only: data.train: ann_file 'none.json' is missing",
        ("--cfg-options", "data.on_eror=skip"): "did you mean 'on_error'",
    }.items():
        done = run(data, *arguments)
        assert done.returncode in (1, 2) and message in done.stderr


def test_a_file_needs_no_config(data, tiny_run):
    tokenizer = tiny_run / "text_tokenizer"
    own = ["--ann-file", data / "data.jsonl", "--template", "vicuna_v1", "--tokenizer", tokenizer]
    done = call_tool(TOOL, *own, "--image-tokens", 4, "--max-length", 300, "--workers", 0, "--out", data / "out")
    assert done.returncode == 3, done.stderr
    assert "10 refused" in done.stdout and "cut by max_length: 40" in done.stdout
    assert "needs --template" in call_tool(TOOL, "--ann-file", data / "data.jsonl").stderr


def test_a_process_that_dies_is_told(data):
    class Deadly:
        def __len__(self):
            return 3 * CHUNK

        def __getitem__(self, i):
            if i == CHUNK:
                os.kill(os.getpid(), signal.SIGKILL)
            return Refusal(str(i), "any", "any")

    source = Source(name="deadly", dataset=Deadly(), max_length=None, num_image_tokens=1)
    with pytest.raises(ValueError, match="deadly: a process died"):
        scan(source, report=open(os.devnull, "w"), workers=1)


def test_bins_are_narrow_and_few():
    bins = [bin_of(value) for value in range(1, 100_000)]
    assert bins == sorted(bins) and len(set(bins)) < 130
    assert all(begin <= value < begin * 1.15 + 1 for value, begin in enumerate(bins, start=1))
