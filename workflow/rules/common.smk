"""The code that the rules share: the lock, the validated study, the paths, and the settings of each stage.

A stage receives its section of the configuration as one JSON text with sorted keys. Snakemake compares
these texts, so that a changed key of `evaluation` reruns only the evaluations and the analysis, and the
order of keys in the YAML file does not matter.
"""

import os
import sys
from collections import Counter
from pathlib import Path

from nested_reft.config import layout
from nested_reft.config.mirror import use_mirror
from nested_reft.config.parse import canonical, parse_settings
from nested_reft.config.stage_settings import settings_of
from nested_reft.config.study import Study
from nested_reft.config.study_file import read_mapping, with_nulls
from nested_reft.errors import UserError
from nested_reft.model.devices import visible_devices
from nested_reft.records.files import read_versioned_json
from nested_reft.records.lock import lock_study
from nested_reft.records.mlflow_mirror import tracking_uri
from nested_reft.records.source_code import source_files
from nested_reft.report.contents import SECTIONS, contents
from nested_reft.study.jobs import job_name
from nested_reft.study.status import write_started
from nested_reft.study.status_text import end_of_failures

# With these options Snakemake runs no job, or the user asks for no lock. They are allowed while a study runs.
READING = ["--lint", "--report", "--summary", "-S", "--detailed-summary", "-D", "--dag"]
READING += ["--rulegraph", "--filegraph", "--d3dag", "--list-rules", "-l", "--nolock"]


def runs_jobs():
    """Return whether this process is the one that schedules jobs. A job on a cluster also parses the Snakefile."""
    options = {argument.split("=")[0] for argument in sys.argv}
    reads = workflow.output_settings.dryrun or not options.isdisjoint(READING)
    return workflow.is_main_process and not reads


try:
    for file in workflow.overwrite_configfiles:
        read_mapping(Path(file))  # Snakemake accepts a file in which a key is repeated
    # Snakemake reads `null` on its command line as a text.
    use_mirror(with_nulls(config).get("mirror"))
    STUDY = parse_settings(Study, with_nulls(config))
    REWARD_FILES = {}
    if STUDY.training.reward_funcs:
        from nested_reft.grading.rewards import reward_files

        REWARD_FILES = reward_files(STUDY.training.reward_funcs)
    if runs_jobs():
        lock_study(Path.cwd(), STUDY.study)
        write_started(Path.cwd(), STUDY)
except UserError as error:
    # An uncaught exception would print a traceback, and a mistake of the user needs only one sentence.
    print(f"Error: {error}", file=sys.stderr)
    sys.exit(2)

if STUDY.jobs.most_gpus(STUDY.grid.model) == 0:
    # Jobs compute on the CPU where a GPU is visible, too. They inherit this variable, also on a cluster, where the
    # process that starts a job reads this file.
    os.environ.update(CUDA_VISIBLE_DEVICES="")
elif (
    workflow.is_main_process
    and workflow.resource_settings.nodes is None
    and "gpu" not in workflow.global_resources
):
    # Without this limit, or that of `--resources gpu=N`, Snakemake would start more jobs than there are GPUs, and they
    # would wait for a lease. Jobs on a cluster, whose number `--jobs` limits, do not use the GPUs of this machine.
    # A limit below `jobs.gpus` would make Snakemake lower the number of a job's GPUs; the check before the jobs refuses
    # such a study.
    workflow.register_resource(
        "gpu", max(len(visible_devices()), STUDY.jobs.most_gpus(STUDY.grid.model))
    )

if workflow.remote_exec:
    # A job on a cluster finds models and data that the submitting node has fetched. It must not wait for a network.
    os.environ.update(HF_HUB_OFFLINE="1")

# The rules call `nested-reft`. Find the command beside this Snakemake even if its environment is not activated.
os.environ.update(
    PATH=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()])
)

RESULTS = layout.RESULTS.format(study=STUDY.study)
REPORTS = layout.REPORTS.format(study=STUDY.study)
LOGS = layout.LOGS.format(study=STUDY.study)
TIMES = layout.TIMES.format(study=STUDY.study)

# All models that are evaluated: path below the results -> axes.
PRODUCTS = dict(layout.products(STUDY))
FIGURES = [
    *(layout.DATASET_FIGURE.format(dataset=dataset) for dataset in STUDY.grid.dataset),
    *layout.FIGURES,
]


# The first page of Snakemake's report.
report: os.path.abspath(f"{REPORTS}/findings.rst")


# The scope `local` restricts a limit such as `--resources gpu=1` to jobs on this machine, because a cluster schedules
# its GPUs itself.
resource_scopes:
    gpu="local",


wildcard_constraints:
    model="[^/]+",
    dataset="[^/]+",
    skip_ratio="[^/]+",
    border=r"\d+",
    mitigation="[^/]+",
    seed=r"\d+",
    # A list of all products would be exact, but Snakemake copies it into the pattern of every job.
    product="(pretrained|sft|train)/model~.+",


def check_before_jobs():
    """End Snakemake with a sentence for each problem that would stop a job later; only what the jobs need is checked."""
    from nested_reft.study.check import Work, check_study, jobs_at_once

    needed = list(workflow.dag.needrun_jobs())
    jobs = Counter(
        (job.rule.name, job.wildcards_dict.get("model", "")) for job in needed
    )
    at_once = (
        jobs_at_once(STUDY, workflow.cores) if workflow.local_exec else workflow.nodes
    )
    work = Work(jobs, at_once, workflow.local_exec)
    problems = check_study(STUDY, Path.cwd(), work).problems
    try:
        problems += slurm_problems(needed)
    except UserError as error:
        problems.append(str(error))
    for problem in problems:
        print(f"Error: {problem}", file=sys.stderr)
    if problems:
        sys.exit(2)


def model_settings(wildcards):
    """Settings passed to `prepare model`: the source of the model."""
    return canonical(
        STUDY.models[wildcards.model].model_dump(exclude={"sft_checkpoint"})
    )


def get_gguf(wildcards):
    """Return the GGUF file of a model: a model is dequantised again when its file changes. Other models have none."""
    return str(STUDY.models[wildcards.model].gguf_file or "") or []


def dataset_settings(wildcards):
    """Settings passed to `prepare dataset`: the source of the training set, and the section `decontamination`."""
    source = STUDY.datasets[wildcards.dataset]
    return canonical({"dataset": source, "decontamination": STUDY.decontamination})


def sft_settings(wildcards):
    """Settings passed to `sft`: the run, the section `sft`, and the prompt."""
    return canonical(settings_of(STUDY, "sft", wildcards))


def train_settings(wildcards):
    """Settings passed to `train`: the run, the sections `training` and `nesting`, and the prompt."""
    return canonical(settings_of(STUDY, "train", wildcards))


def evaluate_settings(wildcards):
    """Settings passed to `evaluate`: the product, its axes, the section `evaluation`, and the prompt."""
    return canonical(settings_of(STUDY, "evaluate", PRODUCTS[wildcards.product]))


def measure_speed_settings(wildcards):
    """Settings passed to `measure-speed`: the model, and what the time of a roll-out depends on."""
    return canonical(settings_of(STUDY, "measure_speed", wildcards))


def analyse_settings(wildcards):
    """Settings passed to `analyse`: the study without the sections that cannot change a table."""
    return canonical(STUDY.model_dump(exclude={"tracking", "jobs"}))


def processes_of(wildcards):
    """Return the processes and GPUs of a job: those of its model."""
    if "product" in wildcards.keys():
        return STUDY.processes("evaluate", PRODUCTS[wildcards.product]["model"])
    return STUDY.processes("train", wildcards.model)


# The processes of a job are resources and not `params`, because a job whose `params` change runs again, and a model does
# not depend on the processes that computed it. Slurm gets only the number of GPUs: the command starts its ranks itself.
def whole_machine():
    """Return the CPU cores of a job beside which no other job shall run: all of this machine's.

    On a cluster, a job gets its own cores, and the profile asks for a node of its own.
    """
    on_cluster = workflow.remote_exec or not workflow.local_exec
    return STUDY.jobs.threads if on_cluster else workflow.resource_settings.cores or 1


def num_gpus(wildcards):
    """Return the number of GPUs of a job."""
    return processes_of(wildcards).gpus


def num_processes(wildcards):
    """Return the number of processes of a job."""
    return processes_of(wildcards).count


def distributed(wildcards):
    """Return how a job uses its processes: `none`, `ddp` or `fsdp`."""
    return processes_of(wildcards).distributed


def get_model(wildcards):
    """Return the model of a product: a folder of weights, or for a pretrained model the note with their path."""
    kind, *axes = PRODUCTS[wildcards.product].values()
    if kind == "sft":
        return layout.start_of_training(STUDY, *axes)
    return f"{RESULTS}/{wildcards.product}/{'model.json' if kind == 'pretrained' else 'model'}"


def get_start(wildcards):
    """Return the model that a training starts from."""
    return layout.start_of_training(
        STUDY, wildcards.model, wildcards.dataset, wildcards.seed
    )


def kept(model):
    """Return the output of a model, which is temporary unless the study keeps its models."""
    return model if STUDY.jobs.keep_models else temp(model)


def shown(place, section, name, title):
    """Return a table or a figure that Snakemake's report shows. The place in the order is in its label, because
    Snakemake sorts labels. `analyse` writes the caption, which states numbers of this study.
    """
    caption = "figure" if name.startswith("figure_") else name
    return report(
        f"{REPORTS}/{name}.{'html' if name in layout.TABLES else 'svg'}",
        caption=os.path.abspath(f"{REPORTS}/caption_{caption}.rst"),
        category=f"{list(SECTIONS).index(section) + 1} {section}",
        labels={"what": f"{place:02} {title}"},
    )


def summary():
    """Return the message at the end: the study is complete, or only the targets that the command names are made."""
    if not any(job.rule.name == "all" for job in workflow.dag.finished_jobs):
        return (
            f"\nThe requested part of the study '{STUDY.study}' is complete.\n"
            "Run the command without targets and without --until to complete the study.\n"
        )
    provenance = read_versioned_json(Path(REPORTS) / "provenance.json")
    samplers = provenance.get("plainer_samplers", {})
    warning = (
        f"  WARNING: {len(samplers)} jobs used another sampler than the config names, such as {next(iter(samplers))}"
        f" ({next(iter(samplers.values()))}); the report lists them, and their logs say why\n"
        if samplers
        else ""
    )
    return (
        f"\nThe study '{STUDY.study}' is complete.\n"
        f"  tables and figures   {REPORTS}/\n"
        f"  results              {RESULTS}/\n"
        f"  HTML report          {REPORTS}/{layout.PAGE}\n"
        f"  MLflow               make ui\n{warning}"
    )


def end_unfinished():
    """Print which jobs failed and what to do, and end Snakemake: with 130 after Ctrl-C, else with 1."""
    failed = [
        (job_name(log.removeprefix(f"{LOGS}/").removesuffix(".log")), Path(log))
        for log in sorted(str(job.log[0]) for job in workflow.scheduler.failed)
    ]
    interrupted = bool(workflow.scheduler.running) or not failed
    logger.error(end_of_failures(STUDY.study, failed, interrupted))
    sys.exit(130 if interrupted else 1)
