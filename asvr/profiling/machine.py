"""Where a figure was measured, as every result of a benchmark names it."""

from asvr.base.machine import machine as machine  # for all who write figures

PACKAGES = ("torch", "transformers", "asvr")


def in_words(found: dict) -> str:
    versions = ", ".join(f"{name} {found[name]}" for name in PACKAGES)
    return f"{found['device']}, {found['threads']} threads, Python {found['python']}, {versions}"
