"""What a job asks a cluster for: the memory of its node and a time limit, from the plan."""

from nested_reft.plan.cards import GIB
from nested_reft.plan.planner import Planner
from nested_reft.study.jobs import axes_of, stage_of

# What the request of a job on a cluster is above its plan at the first attempt, in memory and in time.
MEMORY_FACTOR, TIME_FACTOR = 1.5, 2.0
# The memory of the process itself with its libraries, in bytes: on the CPU (the imports of `train` take 0.51 GiB), and
# beside a GPU.
PROCESS_ON_CPU, PROCESS_ON_GPU = 0.62 * GIB, 6.0 * GIB
# The least that a job on a cluster requests.
LEAST_MB, LEAST_MINUTES = 4000, 30


def requested(planner: Planner, path: str, attempt: int) -> tuple[int, int] | None:
    """Return the memory in MB and the walltime in minutes that a job requests, or None if its model is unknown.

    Both are above the plan and grow with each attempt, because a plan is an estimate. The memory is that of the node;
    that of a GPU is not requested from a scheduler.

    Args:
        planner: the planner of the study.
        path: the path of the job below the results.
        attempt: 1 for the first attempt.
    """
    cost = planner.cost(path)
    if cost is None:
        return None
    if cost.gpus:  # the weights pass through the memory of the node
        memory = cost.gpus * (PROCESS_ON_GPU + 1.5 * 4 * cost.parameters)
    else:
        of = planner.layout(stage_of(path), axes_of(path)["model"])
        memory = of.processes * (PROCESS_ON_CPU + MEMORY_FACTOR * cost.peak.total)
    growth = (1 + attempt) / 2
    megabytes = max(LEAST_MB, memory / 1e6) * growth
    minutes = max(LEAST_MINUTES, TIME_FACTOR * cost.wall_seconds / 60) * growth
    return round(megabytes), round(minutes)
