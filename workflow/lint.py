"""Run `snakemake --lint`, and fail on every finding except one.

The exception is that a rule names no conda environment or container. All rules run in the environment of Snakemake
itself, because they call a command of this package; `make` or `environment.yml` creates that environment.
"""

import re
import subprocess
import sys
from pathlib import Path

EXCEPTION = "Specify a conda environment or container for each rule."


def main() -> int:
    """Print the findings if there are others than the exception, and return the exit code."""
    command = [str(Path(sys.executable).with_name("snakemake")), "--lint"]
    linted = subprocess.run(command, capture_output=True, text=True)
    findings = set(re.findall(r"^ +\* (.*):$", linted.stderr, re.MULTILINE))
    if linted.returncode == 0 or findings == {EXCEPTION}:
        return 0
    print(linted.stdout + linted.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
