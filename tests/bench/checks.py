"""Running `nested-reft bench`, and checks of its results that several tests share."""

import subprocess
import sys

from tests.conftest import ROOT

TINY_SIZES = ("--prompts", "2", "--generations", "2", "--new-tokens", "3", "--rounds", "2", "--threads", "1")


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a measurement in a process of its own."""
    command = [sys.executable, "-m", "nested_reft", "bench", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def check_summary(summary: dict, variants: list[str], rounds: int, are_differences: bool = False) -> None:
    """Check the form of a comparison, whose baseline is the first variant.

    Times that were measured are positive; differences of them need not be on a busy machine.
    """
    assert list(summary["seconds"]) == sorted(variants) and summary["baseline"] == variants[0]
    assert all(len(values) == rounds for values in summary["seconds"].values())
    assert are_differences or all(min(values) > 0 for values in summary["seconds"].values())
    assert summary["orders"] == [variants[:: -1 if index % 2 else 1] for index in range(rounds)]
    assert set(summary["speed_up"]) == set(variants[1:])
    for row in summary["speed_up"].values():
        assert row["ci_low"] <= row["median"] <= row["ci_high"]
    for row in summary["quartiles"].values():
        assert row["lower_quartile"] <= row["median"] <= row["upper_quartile"]


def check_environment_info(results: dict) -> None:
    """Check that results name hardware, versions and threads."""
    assert results["device"] in ("cpu", "cuda") and results["threads"] == 1
    assert results["provenance"]["packages"]["torch"] and results["provenance"]["hardware"]["cpu_count"]
