"""One job on several processes: how a command starts its ranks, and what a rank knows of the others.

A job stays one command. With several processes the command starts itself once per process, as ranks, under torch's
elastic agent, which `torchrun` and `accelerate launch` use too. The agent ends all ranks when one fails, and when it
gets a signal. Rank 0 writes all files and the log; the rows of other ranks in the log, warnings and errors, name them.
"""

import logging
import os
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Sequence
from typing import Any, TypeVar

from nested_reft.errors import UserError
from nested_reft.model.devices import hold_leases

T = TypeVar("T")

# The environment variable with the process id of the command that started a rank.
LAUNCHER = "NESTED_REFT_LAUNCHER"
# How long a rank waits before it reports an error. The failure of one rank makes others fail, too, and the agent ends
# these before they report. Ranks other than 0 wait longest, because all ranks report the same mistake of a user.
SECONDS_BEFORE_REPORT, SECONDS_BEFORE_REPORT_OF_OTHERS = 2.0, 4.0
# How long the agent waits for ranks that got a signal, and that save a checkpoint after their step.
SECONDS_FOR_A_STEP = 600


def num_processes() -> int:
    """Return the number of processes of this job."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return the index of this process among the processes of its job."""
    return int(os.environ.get("RANK", "0"))


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run `nested-reft` with these arguments as several ranks, which share the threads of this job.

    Args:
        count: the number of ranks.
        arguments: the arguments of the command.

    Returns:
        The exit status: 0, that of the first rank that failed, or 128 and the number of a signal that ended all.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the ranks report their errors
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    os.environ |= {"OMP_NUM_THREADS": str(max(1, threads // count)), LAUNCHER: str(os.getpid())}
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # any free port
        local_addr="localhost",
        max_restarts=0,
        signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
        shutdown_timeout=SECONDS_FOR_A_STEP,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )
    try:
        elastic_launch(config, sys.executable)("-m", "nested_reft", *arguments)
    except ChildFailedError as error:
        index, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return failure.exitcode
        name = signal.Signals(-failure.exitcode).name
        print(f"Error: rank {index} was ended by {name}; SIGKILL often means too little memory", file=sys.stderr)
        return 1
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def end_with_launcher() -> None:
    """Let this rank end when the command that started it is killed; its GPUs stay leased until the rank has ended.

    A rank whose command has ended already ends at once. Until then it has not used a GPU.
    """
    from torch.multiprocessing import _prctl_pr_set_pdeathsig

    if num_processes() > 1:
        hold_leases()
        _prctl_pr_set_pdeathsig(signal.SIGKILL)
        if os.environ.get(LAUNCHER, str(os.getppid())) != str(os.getppid()):
            os._exit(1)


def join() -> None:
    """Connect this rank with the other ranks; the function returns when all have joined. One process joins nobody."""
    if num_processes() == 1:
        return
    import torch
    from accelerate import PartialState
    from transformers.utils import logging as transformers_logging

    if rank() > 0:  # the root logger names the rank
        transformers_logging.disable_default_handler()
        transformers_logging.enable_propagation()
    PartialState(cpu=not torch.accelerator.is_available()).wait_for_everyone()


def leave() -> None:
    """Wait until all ranks have ended their work, and disconnect."""
    if num_processes() > 1:
        import torch

        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def gather(items: list[T]) -> list[list[T]]:
    """Return the items of all ranks, a list per rank."""
    if num_processes() == 1:
        return [items]
    import torch

    lists: list[Any] = [None] * num_processes()
    torch.distributed.all_gather_object(lists, items)
    return lists


def end_with_error(error: BaseException, sentence: str | None, status: int) -> None:
    """End this process because of an error, and write its sentence or its traceback; ranks other than 0 are named.

    Args:
        error: the error.
        sentence: what the user should read instead of a traceback, or None.
        status: the exit status.
    """
    if num_processes() > 1:
        is_mistake = isinstance(error, UserError)
        time.sleep(SECONDS_BEFORE_REPORT_OF_OTHERS if rank() else 0 if is_mistake else SECONDS_BEFORE_REPORT)
    text = f"Error: {sentence}\n" if sentence else "".join(traceback.format_exception(error))
    name = f"rank {rank()}: " if rank() else ""
    sys.stderr.write("".join(f"{name}{line}\n" for line in text.splitlines()))
    sys.stderr.flush()
    if num_processes() > 1:
        os._exit(status)  # without the shutdown of torch, which would wait for ranks that have ended
    sys.exit(status)


def share_of(rows: list[T]) -> list[T]:
    """Return the rows of this rank: every n-th, so that ranks get problems of all benchmarks."""
    return rows[rank() :: num_processes()]


def merge_shares(shares: Sequence[Sequence[T]]) -> list[T]:
    """Return all rows in their order, from the share of each rank."""
    merged: list[Any] = [None] * sum(map(len, shares))
    for index, share in enumerate(shares):
        merged[index :: len(shares)] = share
    return merged
