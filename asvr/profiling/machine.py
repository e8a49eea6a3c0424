"""The machine on which a number was measured. Every result of a benchmark names it."""

from asvr.base.machine import machine as machine  # for all modules that write numbers

PACKAGES = ("torch", "transformers", "asvr")


def in_words(found: dict) -> str:
    versions = ", ".join(f"{name} {found[name]}" for name in PACKAGES)
    return f"{found['device']}, {found['threads']} threads, Python {found['python']}, {versions}"
