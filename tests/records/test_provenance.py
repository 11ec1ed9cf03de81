"""The provenance of a result: commit, packages, hardware."""

import importlib.metadata
import subprocess
import sys

from nested_reft.records.provenance import PACKAGES, collect_provenance, installed_version
from tests.conftest import ROOT, run


def test_provenance_names_the_commit_and_the_packages():
    provenance = collect_provenance()
    assert provenance["git_commit"] == run("git", "rev-parse", "HEAD").stdout.strip()
    assert isinstance(provenance["git_dirty"], bool)
    assert set(provenance["packages"]) == set(PACKAGES)
    assert provenance["packages"]["trl"] == importlib.metadata.version("trl")
    assert provenance["hardware"]["cpu_count"] >= 1


def test_a_package_that_is_not_installed_has_no_version():
    assert installed_version("no-such-package") is None


def test_collecting_provenance_does_not_import_torch():
    program = (
        "import sys\n"
        "from nested_reft.records.provenance import collect_provenance\n"
        "assert collect_provenance()['hardware']['gpus'] == [] and 'torch' not in sys.modules"
    )
    finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
