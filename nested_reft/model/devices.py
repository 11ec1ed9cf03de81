"""GPUs of this machine: which of them a process may use, and leases, by which no two jobs get the same one.

A lease is a `flock` on a file of the device in `LEASES`. The operating system releases it when its process ends,
whatever ends the process, so that a killed job frees its devices at once. Nothing here imports torch, because CUDA
reads CUDA_VISIBLE_DEVICES only once.
"""

import fcntl
import logging
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from nested_reft.errors import UserError

log = logging.getLogger(__name__)

# All users of a machine share this folder. It is not below TMPDIR, which may differ between two jobs.
LEASES = Path("/tmp/nested-reft-devices")  # noqa: S108
SECONDS_BETWEEN_ATTEMPTS = 0.5
# The environment variable with the lock files of the leases of a job on several processes, which hold them, too.
LEASED = "NESTED_REFT_LEASED"
# A line of `nvidia-smi -L`: `GPU 0: NVIDIA A100 (UUID: GPU-5c1d)`, and for a part of it `  MIG 1g.5gb Device 0: ...`.
LISTED = re.compile(r"^(?P<part> +MIG )?.*?(?P<index>\d+): .*?\(UUID: (?P<uuid>[\w./-]+)\)", re.MULTILINE)


class Device(NamedTuple):
    """A GPU, or a part of one (MIG), that a job can lease.

    Attributes:
        name: what CUDA_VISIBLE_DEVICES calls it: an index of `nvidia-smi`, or a UUID.
        lock: the name of its lock file, equal for all processes of the machine.
    """

    name: str
    lock: str


def parse_devices(visible: str | None, listing: str, scope: str = "") -> list[Device]:
    """Return the devices that a process may use, in the order of CUDA_VISIBLE_DEVICES.

    A device that is listed twice is returned twice, with two lock files, and may therefore be leased to two jobs at
    once. A GPU that is divided by MIG stands for its parts, because CUDA computes only on these.

    Args:
        visible: the value of CUDA_VISIBLE_DEVICES, or None if it is not set.
        listing: the output of `nvidia-smi -L`, empty where the command does not exist.
        scope: where the names of devices that `nvidia-smi` does not list are valid, for example a job of Slurm.
    """
    parts: dict[str, list[str]] = {}  # UUID of a GPU -> UUIDs of its MIG devices
    indices: dict[str, str] = {}
    for device in LISTED.finditer(listing):
        if device["part"]:
            parts[list(parts)[-1]].append(device["uuid"])
        else:
            parts[device["uuid"]] = []
            indices[device["index"]] = device["uuid"]

    tokens = list(indices) if visible is None else [token.strip() for token in visible.split(",")]
    found: list[tuple[str, str]] = []  # (name, UUID)
    for token in tokens:
        # CUDA accepts the beginning of a UUID.
        uuid = indices.get(token) or next((uuid for uuid in parts if token and uuid.startswith(token)), None)
        if uuid is not None:
            found += [(part, part) for part in parts[uuid]] or [(token, uuid)]
        elif token.startswith("MIG-"):
            found.append((token, token))
        elif parts or token in ("", "-1", "NoDevFiles"):  # CUDA uses neither this name nor what follows it
            break
        else:
            found.append((token, f"{scope}{token}"))

    times: Counter[str] = Counter()
    devices = []
    for name, uuid in found:
        times[uuid] += 1
        lock = uuid.replace("/", "-")
        devices.append(Device(name, lock if times[uuid] == 1 else f"{lock}.{times[uuid]}"))
    return devices


@cache
def list_gpus() -> str:
    """Return the output of `nvidia-smi -L`, or nothing where the command does not exist."""
    with suppress(FileNotFoundError):
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    return ""


def visible_devices() -> list[Device]:
    """Return the devices that this process may use: those of CUDA_VISIBLE_DEVICES, or all that `nvidia-smi` lists."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    listing = "" if visible == "" else list_gpus()
    # Slurm numbers the devices of each job from 0 where it hides the others, so that an index alone is ambiguous.
    job = os.environ.get("SLURM_JOB_ID")
    return parse_devices(visible, listing, f"job-{job}-" if job else "")


def num_gpus(devices: Sequence[Device]) -> int:
    """Return the number of different devices."""
    return len({device.name for device in devices})


def too_few_gpus(wanted: int, devices: Sequence[Device], key: str = "jobs.gpus") -> str:
    """Return the sentence about a job that needs more devices than a process may use; `key` sets their number."""
    number = num_gpus(devices)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    limit = "this machine has" if visible is None else f"CUDA_VISIBLE_DEVICES {visible!r} allows"
    return f"{key} is {wanted}, but {limit} {number} GPU{'s' * (number != 1)}; set {key} to at most {number}" + (
        ", or make more GPUs visible" if visible is not None else ""
    )


def open_shared(path: Path) -> int:
    """Return a descriptor of a lock file that every user of the machine can open. It is created if it is missing.

    A kernel with `fs.protected_regular` lets no user open the file of another one with O_CREAT in a folder like /tmp.
    """
    with suppress(FileExistsError):
        path.parent.mkdir()
        path.parent.chmod(0o1777)
    while True:
        try:
            return os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            with suppress(FileExistsError):
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
                os.fchmod(descriptor, 0o666)  # whatever the umask is
                return descriptor


def try_to_lease(devices: Sequence[Device], count: int) -> dict[str, int]:
    """Lease `count` different devices, or none; return the name and the descriptor of each lease."""
    leases: dict[str, int] = {}
    door = open_shared(LEASES / "door")
    try:
        # One process at a time tries. Two processes that each need two devices could otherwise take one each.
        fcntl.flock(door, fcntl.LOCK_EX)
        for device in devices:
            if device.name in leases or len(leases) == count:
                continue
            descriptor = open_shared(LEASES / f"{device.lock}.lock")
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # From here on the lock is shared with processes that hold the lease, too. It still keeps others out.
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                leases[device.name] = descriptor
            except BlockingIOError:
                os.close(descriptor)
        if len(leases) < count:
            release(leases)
        for descriptor in leases.values():
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} of user {os.getuid()}".encode(), 0)
        return leases
    finally:
        os.close(door)


def release(leases: dict[str, int]) -> None:
    """End the leases."""
    for descriptor in leases.values():
        os.close(descriptor)
    leases.clear()


def lock_paths(leases: dict[str, int]) -> str:
    """Return the lock files of leases, for the environment variable `LEASED` of processes that compute on them."""
    return ":".join(str(Path(f"/proc/self/fd/{descriptor}").readlink()) for descriptor in leases.values())


def hold_leases() -> None:
    """Hold the leases of the job that started this process until this process ends, even if the job ends before."""
    for path in filter(None, os.environ.get(LEASED, "").split(":")):
        fcntl.flock(open_shared(Path(path)), fcntl.LOCK_SH)


def holders(devices: Sequence[Device]) -> str:
    """Return which process leased each device last, as a part of a sentence."""
    texts = []
    for device in devices:
        with suppress(FileNotFoundError):
            texts.append(f"{device.name} by {(LEASES / f'{device.lock}.lock').read_text()}")
    return ", ".join(texts)


@contextmanager
def shown(names: Iterable[str]) -> Iterator[None]:
    """Show CUDA only these devices, or what it is shown already if there are none."""
    before = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")}
    if listed := ",".join(names):
        # By default CUDA numbers different GPUs by their speed, but `nvidia-smi` by their place on the bus.
        os.environ |= {"CUDA_VISIBLE_DEVICES": listed, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def leased_devices(count: int = 1) -> Iterator[dict[str, int]]:
    """Lease GPUs for this process, wait until enough are free, and show CUDA only these.

    The lease sets CUDA_VISIBLE_DEVICES, so torch must not have used CUDA before. It gives the devices back at the end
    of the context or of the process. Nothing is leased on the CPU, or where `nvidia-smi` does not exist and
    CUDA_VISIBLE_DEVICES is not set.

    Args:
        count: the number of different devices that the process needs at once. It gets all of them or waits.

    Yields:
        Name -> descriptor of the lock file. A process that may outlive this one and computes on the devices has to
        keep the lease: it inherits the descriptors (`pass_fds` of subprocess), or calls `hold_leases`.

    Raises:
        UserError: the process may use fewer devices.
    """
    devices = visible_devices()
    if not devices:
        yield {}
        return
    if num_gpus(devices) < count:
        raise UserError(too_few_gpus(count, devices))
    leases = try_to_lease(devices, count)
    if not leases:
        log.warning("waiting for %d of the GPUs, which are in use: %s", count, holders(devices))
    while not leases:
        time.sleep(SECONDS_BETWEEN_ATTEMPTS)
        leases = try_to_lease(devices, count)
    try:
        with shown(leases):
            yield leases
    finally:
        release(leases)
