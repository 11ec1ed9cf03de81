"""The file system of a path, from lines as in /proc/mounts."""

from pathlib import Path

import pytest

from nested_reft.records import mounts
from nested_reft.records.mounts import file_system, network_file_system

MOUNTS = """/dev/vda / ext4 rw,relatime 0 0
auto.home /home autofs rw 0 0
head:/export/ada /home/ada nfs4 rw,vers=4.2 0 0
tmpfs /home/ada/scratch tmpfs rw 0 0
10.0.0.1@tcp:/lustre /lustre/my\\040work lustre rw 0 0
ada@host:/ /mnt/remote fuse.sshfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/work/mlflow.db", "ext4"),
        ("/home/ada/study/results/mlflow.db", "nfs4"),
        ("/home/adam/mlflow.db", "autofs"),
        ("/home/ada/scratch/mlflow.db", "tmpfs"),
        ("/lustre/my work/mlflow.db", "lustre"),
        ("/mnt/remote/mlflow.db", "fuse.sshfs"),
    ],
)
def test_a_path_is_on_the_innermost_file_system(path, kind):
    assert file_system(Path(path), MOUNTS) == kind


def test_a_later_file_system_of_a_folder_hides_an_earlier_one():
    assert file_system(Path("/data/mlflow.db"), "a /data ext4 rw 0 0\nb /data nfs rw 0 0\n") == "nfs"
    assert file_system(Path("/data/mlflow.db"), "") == ""


@pytest.mark.parametrize(
    ("kind", "found"), [("nfs4", "nfs4"), ("fuse.sshfs", "fuse.sshfs"), ("ext4", None), ("fuse.encfs", None)]
)
def test_file_systems_that_machines_share_are_known(kind, found, monkeypatch, tmp_path):
    monkeypatch.setattr(mounts, "file_system", lambda path, content: kind)
    assert network_file_system(tmp_path) == found


def test_the_folder_of_the_tests_is_on_this_machine(tmp_path):
    assert network_file_system(tmp_path / "not-yet" / "mlflow.db") is None
