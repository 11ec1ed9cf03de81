"""A disk that is full while a stage writes: a small file system in memory, which only the stage sees."""

import subprocess
import sys
from pathlib import Path

import pytest

from nested_reft.config.parse import canonical
from nested_reft.config.stage_settings import settings_of
from nested_reft.config.study_file import read_study
from nested_reft.records.files import checksum
from tests.conftest import ROOT, TINY

IN_NAMESPACE = ["unshare", "--map-root-user", "--mount"]
# The disk has room for no whole checkpoint of a model of 6.7 MB, until it is enlarged.
SCRIPT = """
disk=$1; shift
mount -t tmpfs -o size=10m tmpfs "$disk"
"$@" --out "$disk/sft"; first=$?
test -e "$disk/sft/run.json" && exit 90
mount -o remount,size=100m "$disk"
"$@" --out "$disk/sft" || exit 91
cp -r "$disk/sft" "$disk.finished"
exit $first
"""


def can_mount() -> bool:
    """Return whether this machine lets a user mount a file system in a namespace of their own."""
    try:
        return subprocess.run([*IN_NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="this machine allows no mount in a namespace: `unshare --mount` fails")
def test_a_warm_up_on_a_full_disk_ends_with_a_sentence_and_resumes(tmp_path, smoke_study):
    study = read_study(ROOT / "config/smoke.yaml")
    axes = {"model": "tiny-28", "dataset": "mixed", "seed": 0}
    disk = tmp_path / "disk"
    disk.mkdir()
    command = [sys.executable, "-m", "nested_reft", "sft", "--settings", canonical(settings_of(study, "sft", axes))]
    command += ["--model", str(TINY), "--data", str(smoke_study / "results/smoke/data/dataset~mixed/train.jsonl")]
    done = subprocess.run(
        [*IN_NAMESPACE, "bash", "-c", SCRIPT, "full-disk", str(disk), *command],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("Error: ") == 1 and "is full" in done.stderr
    undisturbed = smoke_study / "results/smoke/sft/model~tiny-28/dataset~mixed/seed~0/model/model.safetensors"
    assert checksum(Path(f"{disk}.finished/model/model.safetensors")) == checksum(undisturbed)
