"""The kind of the file system that a file is on."""

import re
from pathlib import Path

# The kinds of file systems that several machines share, as in the third column of /proc/mounts. Those that run as a
# program of a user have the prefix `fuse.`.
NETWORK_FILE_SYSTEMS = {
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "glusterfs",
    "gpfs",
    "juicefs",
    "lustre",
    "nfs",
    "nfs4",
    "orangefs",
    "panfs",
    "pvfs2",
    "smb3",
    "smbfs",
    "sshfs",
    "wekafs",
}


def file_system(path: Path, mounts: str) -> str:
    """Return the kind of the file system of a path, or an empty text if it is unknown.

    Args:
        path: an absolute path without symbolic links. It need not exist.
        mounts: the content of /proc/mounts, where later lines hide earlier ones of the same folder.
    """
    kinds = {}
    for line in mounts.splitlines():
        _, folder, kind, *_ = line.split(" ")
        kinds[Path(re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), folder))] = kind  # a space is `\040`
    return next((kinds[folder] for folder in [path, *path.parents] if folder in kinds), "")


def network_file_system(path: Path) -> str | None:
    """Return the kind of the network file system that a path is on, or None if it is on another kind."""
    mounts = Path("/proc/mounts")  # only Linux has it
    kind = file_system(path.resolve(), mounts.read_text() if mounts.exists() else "")
    return kind if kind.removeprefix("fuse.") in NETWORK_FILE_SYSTEMS else None
