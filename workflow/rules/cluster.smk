"""What a warm-up, a training and an evaluation ask a cluster for, beside `jobs.threads` and `jobs.gpus`, and the checks
of Slurm before the first job.

On one machine nothing limits memory and time. `set-resources` of a profile replaces the values for a rule or a model.
"""

from functools import cache

from nested_reft.plan.cluster import requested
from nested_reft.plan.planner import Planner, cards_of
from nested_reft.study import slurm

# The id of the Slurm job in which this Snakemake itself runs. The plugin removes the variable before the first job.
OWN_JOB = os.environ.get("SLURM_JOB_ID")
# The memory in MB and the time limit in minutes of a job on a model whose shape is unknown before it is fetched.
UNPLANNED = (64_000, 1_440)


@cache
def planner():
    """Return the planner of the study, which reads the shapes of the models once."""
    return Planner(STUDY, cards_of(STUDY, []))


def planned(path, attempt):
    """Return the memory in MB and the time limit in minutes of a job, as `nested-reft plan` estimates them."""
    return requested(planner(), path, attempt) or UNPLANNED


def job_memory(template):
    """Return the function for the memory of a rule in MB. It grows with each attempt, as a lack may have ended the last."""
    return lambda wildcards, attempt: planned(template.format(**wildcards), attempt)[0]


def job_minutes(template):
    """Return the function for the time limit of a rule in minutes. It does not grow, because a job resumes after it."""
    return lambda wildcards: planned(template.format(**wildcards), 1)[1]


def slurm_request(job):
    """Return what a job asks Slurm for. A value that depends on a file that does not exist yet counts as 0."""
    asked = {
        name: value if isinstance(value := job.resources.get(name), int) else 0
        for name in ("gpu", "mem_mb", "runtime")
    }
    return slurm.Request(
        job.rule.name,
        str(job.resources.get("slurm_partition") or ""),
        asked["gpu"],
        job.threads,
        asked["mem_mb"],
        asked["runtime"],
    )


def slurm_problems(needed):
    """Return a sentence for each request that Slurm could never satisfy.

    End the Slurm jobs that an earlier run of the study has left, and keep the name of those of this run. The caller has
    the lock of the study and has submitted nothing yet.
    """
    if left := slurm.end_jobs_left(Path.cwd(), STUDY.study, OWN_JOB):
        logger.info(
            f"Cancelled the Slurm jobs {' '.join(left)}, which an earlier run of the study has left."
        )
    if workflow.executor_plugin.name != "slurm":
        return []
    requests = [slurm_request(job) for job in needed if not job.is_local]
    job_name = workflow.scheduler._executor.run_uuid
    slurm.write_submitted(Path.cwd(), STUDY.study, job_name, OWN_JOB)
    return list(slurm.request_problems(requests, slurm.read_nodes()))
