"""Which packages of ``benchmarks/gpu.py`` a Python has, and which GPU: python benchmarks/gpu_probe.py FOLDER NAME ...

Imports each NAME; of ``package:NAME`` it only looks whether it is there. FOLDER, where the parts' Python looks first,
gets a stand-in for OpenCV, if there is none: mmengine imports ``cv2`` for its visualisers, which nothing here uses, and
tells it how many threads to take. The last line is ``FIGURES`` and a JSON object.
"""

import importlib
import importlib.util
import json
import sys
from pathlib import Path

PACKAGE = "package:"
OPENCV = '"""Stands in for OpenCV."""\n\n__version__ = "none"\n\n\ndef setNumThreads(count):\n    pass\n'


def main(folder: str, *names: str) -> None:
    if importlib.util.find_spec("cv2") is None:
        (Path(folder) / "cv2.py").write_text(OPENCV, encoding="utf-8")
        importlib.invalidate_caches()
    found, problems = {}, {}
    for name in names:
        if name.startswith(PACKAGE):
            there = importlib.util.find_spec(name.removeprefix(PACKAGE)) is not None
            (found if there else problems)[name] = "there" if there else "no such package"
            continue
        try:
            found[name] = getattr(importlib.import_module(name), "__version__", "there")
        except Exception as error:  # whatever a package that was built for another machine raises
            problems[name] = f"{type(error).__name__}: {error}"
    machine = dict(python=sys.version.split()[0], packages=found, problems=problems)
    if "torch" in found:
        import torch

        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()
            machine |= dict(gpu=torch.cuda.get_device_name(), gib=round(total / 2**30), free_gib=round(free / 2**30))
    print("FIGURES", json.dumps(machine))


if __name__ == "__main__":
    main(*sys.argv[1:])
