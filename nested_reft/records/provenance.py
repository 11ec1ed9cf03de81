"""The commit, the package versions and the hardware that a result comes from."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "peft", "math-verify", "mlflow", "snakemake")


def installed_version(package: str) -> str | None:
    """Return the version of a package, or None: the benchmarks also run where not all packages are installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def collect_provenance() -> dict[str, Any]:
    """Return the commit of the code, the versions of the packages, and the hardware of this machine.

    GPUs are listed only if torch is loaded already: importing it here would slow the stages that do without it.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    hardware: dict[str, Any] = {"machine": platform.machine(), "cpu_count": os.cpu_count(), "gpus": []}
    if (torch := sys.modules.get("torch")) is not None:
        hardware["torch_threads"] = torch.get_num_threads()
        hardware["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "git_commit": git("rev-parse", "HEAD") or "unknown",
        "git_dirty": bool(git("status", "--porcelain", "--", ":/nested_reft", ":/workflow", ":/Snakefile")),
        "python": platform.python_version(),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "hardware": hardware,
    }
