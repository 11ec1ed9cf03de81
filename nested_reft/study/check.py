"""The check of a study before its first job: what would stop a job later is found in seconds, and all of it at once.

Each check returns what it found in a few words, or raises a UserError with one sentence. The checks read data and
models by the functions that the stages use, so that both agree.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from nested_reft.config import layout
from nested_reft.config.local_path import local_path
from nested_reft.config.sections import BenchmarkSource, DatasetSource, Training, dequantised_folder, local_folder
from nested_reft.config.study import Study
from nested_reft.errors import NestingError, UserError
from nested_reft.model.devices import num_gpus, shown, too_few_gpus, visible_devices
from nested_reft.startup import quick_imports
from nested_reft.study.disk import SECTION_OF, check_disk
from nested_reft.study.jobs import axes_of, job_paths, stage_of

# The stages that load a model.
MODEL_STAGES = ("measure_speed", "sft", "train", "evaluate")
# Files with these suffixes are not names on the hub.
DATA_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".txt")


class Work(NamedTuple):
    """The jobs that still have to run.

    Attributes:
        jobs: (stage, model) -> number of jobs; the model is empty for a stage that belongs to no model.
        at_once: the most jobs that run at a time.
        is_local: whether the jobs run on this machine, and not on a cluster.
    """

    jobs: Counter[tuple[str, str]]
    at_once: int
    is_local: bool

    def has(self, *stages: str) -> bool:
        """Return whether a job of one of these stages has to run."""
        return any(stage in stages for stage, _ in self.jobs)


class Checked(NamedTuple):
    """The result of a check.

    Attributes:
        found: (subject, what was found), a pair for each check that passed.
        problems: a sentence for each check that failed.
    """

    found: list[tuple[str, str]]
    problems: list[str]


def unfinished_work(study: Study, directory: Path, is_local: bool) -> Work:
    """Return the work of a whole study, in which products that exist are not counted again.

    Args:
        study: the study.
        directory: its working directory.
        is_local: whether the jobs run on this machine.
    """
    results = directory / layout.RESULTS.format(study=study.study)
    jobs = Counter({("prepare_dataset", ""): 1, ("prepare_benchmarks", ""): 1})
    for path in job_paths(study):
        jobs[stage_of(path), axes_of(path)["model"]] += not (results / path / "run.json").exists()
    return Work(jobs, jobs_at_once(study, os.cpu_count() or 1) if is_local else 1, is_local)


def jobs_at_once(study: Study, cores: int) -> int:
    """Return the number of jobs that run at a time on this machine: as many as have their GPUs, or their cores.

    Jobs count as those of the model whose jobs have most GPUs. It has the largest checkpoints, too.
    """
    gpus = study.jobs.most_gpus(study.grid.model)
    return max(1, len(visible_devices()) // gpus if gpus else cores // study.jobs.threads)


def check_study(study: Study, directory: Path, work: Work) -> Checked:
    """Return what was found, and the problems that would stop a job of the study.

    Args:
        study: the study, whose keys are valid.
        directory: the working directory.
        work: the jobs that have to run; only what they need is checked.
    """
    checked = Checked([], [])
    for subject, check in planned_checks(study, directory, work):
        try:
            checked.found.append((subject, check()))
        except UserError as error:
            if str(error) not in checked.problems:  # two checks read the weights of a model
                checked.problems.append(str(error))
    return checked


def describe_size(study: Study) -> str:
    """Return the number of trainings, warm-ups and evaluations of a study in words."""
    jobs = Counter(map(stage_of, job_paths(study)))
    numbers = {"training": jobs["train"], "warm-up": jobs["sft"], "evaluation": jobs["evaluate"]}
    return ", ".join(f"{number} {name}{'s' * (number != 1)}" for name, number in numbers.items())


def planned_checks(study: Study, directory: Path, work: Work) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield the subject of each check with a function that checks it."""
    yield "folders", partial(check_folders, study.study, directory)
    if work.has(*MODEL_STAGES):
        for name in study.grid.model:
            yield f"model {name}", partial(check_model, study, name)
        yield "device", partial(check_device, study, work.is_local)
    if work.has("prepare_dataset"):
        for name in study.grid.dataset:
            yield f"dataset {name}", partial(check_dataset, study.datasets[name], study.training)
    if work.has("prepare_benchmarks"):
        for name, source in study.benchmarks.items():
            yield f"benchmark {name}", partial(check_benchmark, source)
    if work.has("train") and study.training.reward_funcs:
        yield "rewards", partial(check_rewards, study.training, work.is_local)
    if work.has("train") and study.training.share_prompts:
        yield "share_prompts", partial(check_sharing, study)
    if work.has("train") and study.training.sampler == "vllm":  # another sampler takes the place of an unfit one
        yield "training.sampler", partial(check_sampler, study, "training")
    if work.has("evaluate"):
        yield "sampler", partial(check_sampler, study, "evaluation")
    for stage, section in SECTION_OF.items():
        if work.has(stage) and getattr(study, section).lora:
            yield f"{section}.lora", partial(check_adapter, study, section)
        if work.has(stage) and getattr(study, section).optim != "adamw_torch":  # torch always has this one
            yield f"{section}.optim", partial(check_optimizer, study, section)
    if work.has(*MODEL_STAGES):
        yield "MLflow", partial(check_store, study.tracking.uri)
        yield "trackers", partial(check_trackers, study.tracking.report_to)
        yield "disk", partial(check_disk, study, directory, work.jobs, work.at_once)


def check_folders(study: str, directory: Path) -> str:
    """Check that the folders of the study can be written to."""
    for template in (layout.RESULTS, layout.REPORTS, layout.LOGS, layout.TIMES):
        folder = directory / template.format(study=study)
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir():
            raise UserError(f"{folder} is a file, but the study needs a folder of this name; move the file")
        if not os.access(folder, os.W_OK):
            raise UserError(
                f"{folder} cannot be written to; change its permissions, or run the study in another folder"
            )
    return f"{layout.RESULTS.format(study=study)}/ and {layout.REPORTS.format(study=study)}/ can be written"


def describe_download(path: str) -> str:
    """Return in words that a path counts as a name on the hub, since nothing local has it.

    Raises:
        UserError: the path is in an existing folder or ends like a file of data, so it is probably mistyped.
    """
    local = local_path(path)
    if local.parent.is_dir() or local.suffix in DATA_SUFFIXES:
        raise UserError(f"{path} does not exist in {Path.cwd()}; correct the path")
    return f"{path} is not a local path, so it is downloaded from the hub and checked then"


def describe_gguf(file: Path) -> str:
    """Return in words that a GGUF file is dequantised before the first job that needs it.

    Raises:
        UserError: the file is not a GGUF file or not complete.
    """
    from nested_reft.data.gguf import read_header

    header = read_header(file)
    return (
        f"{file}, architecture {header.architecture}, is dequantised into {dequantised_folder(file)} and checked then"
    )


def check_model(study: Study, name: str) -> str:
    """Check a model and its checkpoints: that each has weights and a tokenizer, and that its layers can be skipped."""
    from huggingface_hub import is_offline_mode

    from nested_reft.model.weights import downloaded_folder

    source = study.models[name]
    checkpoints = (source.checkpoint(dataset, seed) for dataset, seed in study.datasets_and_seeds())
    folders = [downloaded_folder(source), *(local_folder(path) for path in dict.fromkeys(checkpoints) if path)]
    found = [check_weights(folder, study) for folder in folders if folder is not None]
    if folders[0] is None:
        found.insert(0, describe_gguf(source.gguf_file) if source.gguf_file else describe_download(source.path))
        if source.gguf_file is None and is_offline_mode():
            raise UserError(
                f"models.{name} {source.path} is neither in the mirror nor in the cache of the hub, which "
                "HF_HUB_OFFLINE forbids to ask; run `nested-reft fetch` where there is a network, or correct the path"
            )
    return "; ".join(dict.fromkeys(found))


def check_weights(folder: Path, study: Study) -> str:
    """Check the weights, the tokenizer and the layers of a model in a folder."""
    from nested_reft.model.weights import count_parameters

    parameters = count_parameters(folder)
    with quick_imports():
        from nested_reft.model.describe import describe_stack
        from nested_reft.model.loading import load_tokenizer

    num_tokens = len(load_tokenizer(folder))
    for border in study.grid.border:
        stack = describe_stack(str(folder), border, study.grid.skip_ratio)
    return f"{stack.num_layers} layers, {parameters / 1e6:,.1f} M parameters, tokenizer of {num_tokens:,} tokens"


def check_dataset(source: DatasetSource, training: Training) -> str:
    """Check the columns and all rows of a local training set, and that a training step has enough problems."""
    from nested_reft.data.formats import training_row

    size, found = count_rows(source, training_row)
    if size is not None and size < training.prompts_per_generation:
        raise UserError(
            f"{source.path} has {size} problems, fewer than the {training.prompts_per_generation} of a step "
            "(training.prompts_per_step); take a larger dataset or fewer prompts per step"
        )
    return found


def check_benchmark(source: BenchmarkSource) -> str:
    """Check the columns and all rows of a local benchmark."""
    from nested_reft.data.formats import benchmark_row

    return count_rows(source, benchmark_row)[1]


def count_rows(
    source: DatasetSource | BenchmarkSource, parse: Callable[[dict[str, object]], dict[str, object]]
) -> tuple[int | None, str]:
    """Return the number of rows of a data source, or None if it is unknown, and the same in words."""
    from huggingface_hub import is_offline_mode

    from nested_reft.data.sources import parsed_rows

    if source.is_embedded:
        return source.size, f"{source.size} problems, generated"
    if source.local_path is None:
        found = describe_download(source.path)
        if not is_offline_mode():  # without the hub, the data may still be in its cache
            return None, found
    rows = len(parsed_rows(source, parse))
    return rows, f"{rows} problems" + (f", fewer than its size {source.size}" if rows < (source.size or 0) else "")


def check_device(study: Study, is_local: bool) -> str:
    """Check that as many GPUs are there as the largest job asks for."""
    gpus = study.jobs.most_gpus(study.grid.model)
    key = next(study.jobs.gpus_key(name) for name in study.grid.model if study.jobs.processes(name).gpus == gpus)
    if gpus == 0:
        return f"CPU, because {key} is 0"
    if not is_local:
        return f"{gpus} GPU{'s' * (gpus > 1)} of the cluster, which cannot be checked here"
    devices = visible_devices()
    if devices and num_gpus(devices) < gpus:
        raise UserError(too_few_gpus(gpus, devices, key))
    import torch

    with shown(dict.fromkeys(device.name for device in devices)):  # torch finds no GPU if one is listed twice
        if torch.accelerator.is_available():
            name = f"GPU {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "GPU"
            at_once = len(devices) // gpus
            return name + (f", for {at_once} jobs at once" if at_once > 1 else "")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = "" if visible is None else f" and CUDA_VISIBLE_DEVICES {visible!r}"
    raise UserError(
        f"{key} is {gpus}, but torch {torch.__version__} finds no GPU on this machine{hidden}; set {key} to 0 to "
        "compute on the CPU"
    )


def check_rewards(training: Training, is_local: bool) -> str:
    """Check that the reward functions can be imported and, for jobs on this machine, that they return numbers."""
    from nested_reft.grading.rewards import load_reward
    from nested_reft.study.reward_trial import try_reward

    names = training.reward_funcs or []
    for name in names:
        if is_local:
            try_reward(name, training.num_generations)
        else:  # the function may need what only the machines of the cluster have
            load_reward(name)
    return ", ".join(names)


def models_here(study: Study) -> Iterator[tuple[str, Path]]:
    """Yield the name and the folder of each model of the study that is on this machine."""
    from nested_reft.model.weights import downloaded_folder

    for name in study.grid.model:
        if (folder := downloaded_folder(study.models[name])) is not None:
            yield name, folder


def check_sampler(study: Study, section: Literal["training", "evaluation"]) -> str:
    """Check that vLLM is installed if it samples, and that it can sample from each nested model on this machine."""
    sampler: str = getattr(study, section).sampler
    if sampler == "vllm":
        from transformers import AutoConfig

        from nested_reft.model.renumber import smaller_config
        from nested_reft.rollout.vllm import check_installed

        check_installed(f"{section}.sampler")
        for name, folder in models_here(study) if section == "training" else ():
            try:
                smaller_config(AutoConfig.from_pretrained(folder), 1)
            except NestingError as error:
                raise UserError(f"training.sampler cannot be vllm for models.{name}: {error}") from None
    return f"{sampler} for {section}s"


def check_adapter(study: Study, section: Literal["sft", "training"]) -> str:
    """Check that each target of an adapter names modules of each model that is on this machine."""
    from nested_reft.model.lora import read_adapter

    lora = getattr(study, section).lora
    found = [f"{read_adapter(folder, lora, f'{section}.lora')} of {name}" for name, folder in models_here(study)]
    return f"rank {lora.r}, {'; '.join(found) or 'checked when the models are downloaded'}"


def check_sharing(study: Study) -> str:
    """Check that the update can read each prompt once, for each model that is on this machine."""
    from transformers import AutoConfig

    from nested_reft.model.shared_prompts import untested_reason

    found = []
    for name, folder in models_here(study):
        config = AutoConfig.from_pretrained(folder).get_text_config()
        if reason := untested_reason(config):
            raise UserError(f"training.share_prompts cannot be true for models.{name}: {reason}; set it to false")
        found.append(f"{config.model_type} of {name}")
    return ", ".join(found) or "checked when the models are downloaded"


def check_optimizer(study: Study, section: Literal["sft", "training"]) -> str:
    """Check that bitsandbytes can run if it optimizes. Another check looks for the GPUs that `jobs.gpus` asks for."""
    from nested_reft.model.optim import check_optim

    has_gpu = study.jobs.most_gpus(study.grid.model) > 0
    ways = {study.jobs.processes(name).distributed for name in study.grid.model}
    return check_optim(getattr(study, section), section, has_gpu, "fsdp" if "fsdp" in ways else "none")


def check_store(uri: str | None) -> str:
    """Check that the MLflow store answers, and that several jobs can use it at once."""
    from nested_reft.records.mlflow_mirror import shared_store_problem, tracking_uri

    uri = tracking_uri(uri)
    if uri is None:
        return "none, because tracking.uri is null"
    if problem := shared_store_problem(uri):
        raise UserError(problem)
    return uri


def check_trackers(names: Sequence[str]) -> str:
    """Check that the other trackers are installed."""
    from nested_reft.records.trackers import trackers_problem

    if problem := trackers_problem(names):
        raise UserError(problem)
    return ", ".join(names) or "none but MLflow"
