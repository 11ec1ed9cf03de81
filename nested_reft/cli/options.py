"""Options and helpers that several commands share."""

import inspect
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import yaml

from nested_reft import processes
from nested_reft.config import parse, sections
from nested_reft.config.mirror import mirrored
from nested_reft.config.study_file import read_mapping
from nested_reft.errors import PreemptedError, UserError
from nested_reft.model.devices import LEASED, leased_devices, lock_paths
from nested_reft.startup import quick_imports

if TYPE_CHECKING:
    from nested_reft.records.stage_record import StageRecord

log = logging.getLogger(__name__)

Settings = Annotated[
    str, typer.Option(help="Settings of the stage: JSON, a YAML file, or `-` to read standard input.")
]
Out = Annotated[Path, typer.Option(help="File or folder to write.")]


def model_folder(model: str) -> Path:
    """Return the folder of a model.

    Args:
        model: that folder, `embedded/<name>`, or a model.json with the path of that folder.

    Raises:
        UserError: the path is neither the folder of a model nor the name of an embedded one.
    """
    if model.startswith("embedded/"):
        source: sections.ModelSource = parse.parse_settings(sections.ModelSource, {"path": model}, lambda key: "model")
        assert source.local_path is not None  # an embedded model without a folder has been refused
        return source.local_path
    path = Path(model)
    if path.suffix == ".gguf" and path.is_file():
        raise UserError(sections.convert_first(path))
    if path.suffix == ".json" and path.is_file():
        note = json.loads(path.read_text())
        path = mirrored(note.get("hub_name", "")) or Path(note["path"])
        if not path.is_dir():
            raise UserError(f"{path}, which {model} names, does not exist; delete {model} and run the study again")
    if not path.is_dir():
        raise UserError(f"model {str(path)!r} is not a folder; give the folder of a model or embedded/<name>")
    return path


def check_out_folder(folder: Path) -> None:
    """Refuse a folder that cannot be written to, before anything is computed for it.

    Raises:
        UserError: the folder or one above it is a file, or cannot be written to.
    """
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise UserError(f"{existing} is a file, so that --out cannot be a folder there; name another one")
    if not os.access(existing, os.W_OK):
        raise UserError(f"{folder} cannot be written to for lack of permission; name another folder with --out")


MODEL = typer.Option(
    parser=model_folder,
    metavar="<model>",
    help="Folder of a model, embedded/<name>, or the model.json that `prepare model` wrote.",
)
ModelPath = Annotated[Path, MODEL]
OptionalModelPath = Annotated[Path | None, MODEL]
ModelArgument = Annotated[Path, typer.Argument(parser=model_folder, help="Folder of a model, or embedded/<name>.")]
Data = Annotated[
    Path,
    typer.Option(
        exists=True, dir_okay=False, help="File of JSON lines that `prepare dataset` or `prepare benchmarks` wrote."
    ),
]
Benchmarks = Annotated[Path, typer.Option(exists=True, dir_okay=False, help="File that `prepare benchmarks` wrote.")]
Tracking = Annotated[
    Path | None,
    typer.Option(exists=True, help="The tracking.json of the study. Without it, no tracker gets anything."),
]
Distributed = Annotated[
    Literal["none", "ddp", "fsdp"], typer.Option(help="How several processes are used, as `jobs.distributed` says.")
]
NumProcesses = Annotated[int, typer.Option(min=1, help="Processes of this command, one per GPU.")]


def read_settings(section: type[sections.Section], settings: str) -> Any:
    """Return the settings of a stage.

    Args:
        section: the section of the configuration that they must form.
        settings: a YAML file, JSON, or `-` to read JSON or YAML from standard input.

    Raises:
        UserError: the text cannot be parsed, or a setting is wrong.
    """
    if settings.endswith((".yaml", ".yml")):
        return parse.parse_settings(section, read_mapping(Path(settings)))
    try:  # JSON comes first, because YAML reads some numbers of JSON as text
        text = sys.stdin.read() if settings == "-" else settings
        loaded = json.loads(text)
    except json.JSONDecodeError as error:
        try:
            loaded = yaml.safe_load(text) if settings == "-" else None
        except yaml.YAMLError:
            loaded = None
        if not isinstance(loaded, dict):
            raise UserError(
                f"--settings is not JSON ({error}); quote it for the shell, or give a .yaml file"
            ) from None
    return parse.parse_settings(section, loaded)


def run_ranks(distributed: str, num_processes: int, settings: sections.Section, out: Path) -> bool:
    """Run this command as several ranks if there should be several; return whether this was done.

    A process that is a rank already, started by this function or by `torchrun`, returns and does the work.

    Args:
        distributed: `none`, `ddp` or `fsdp`.
        num_processes: the number of ranks.
        settings: the settings of the stage, which may come from standard input.
        out: the folder of the product.

    Raises:
        UserError: the two options contradict each other or the environment.
        typer.Exit: a rank has failed and has said why.
    """
    if distributed == "none" and num_processes > 1:
        raise UserError(
            f"--num-processes is {num_processes}, but --distributed is none, which is one process; set --distributed "
            "to ddp or fsdp"
        )
    if distributed != "none" and num_processes == 1:
        raise UserError(
            f"--distributed is {distributed} with one process, which has nothing to divide; set --num-processes to 2 "
            "or more, or leave --distributed out"
        )
    started = processes.num_processes()
    if started not in (1, num_processes):
        raise UserError(
            f"WORLD_SIZE is {started}, but --num-processes is {num_processes}; start the command without torchrun"
        )
    if num_processes == 1 or started > 1:
        return False
    from nested_reft.records.lock import lock_product

    with lock_product(out):  # rank 0 locks the product; the other ranks would give up while it waits for the lock
        pass
    with leased_devices(num_processes) as leases:
        os.environ[LEASED] = lock_paths(leases)
        status = processes.launch(num_processes, [*sys.argv[1:], "--settings", parse.canonical(settings)])
    if status:
        raise typer.Exit(status)
    return True


def made_by_another(settings: sections.Section, inputs: dict[str, Path], out: Path) -> bool:
    """Wait while another process writes a product; return whether it has finished what this command should make.

    A job survives a Snakemake that is killed, and the next Snakemake starts it again. Ranks do not wait: the command
    that started them has done so.

    Args:
        settings: all settings of the stage.
        inputs: name -> file or folder that the stage reads.
        out: the folder of the product.

    Raises:
        UserError: the folder cannot be written to.
    """
    from nested_reft.records.lock import lock_product
    from nested_reft.records.products import is_finished

    if processes.num_processes() > 1:
        return False
    check_out_folder(out)
    with lock_product(out) as has_waited:
        if not has_waited or not is_finished(out, json.loads(parse.canonical(settings)), inputs):
            return False
    log.info("the other process has finished %s with the same settings and inputs, and nothing is left to do", out)
    return True


def leased_device() -> AbstractContextManager[object]:
    """Return the context in which this process has a GPU of its own; a rank has one of those that its job leased."""
    return leased_devices() if processes.num_processes() == 1 else nullcontext()


def apply_resource_limits() -> None:
    """Restrict the process to the threads in OMP_NUM_THREADS, which Snakemake sets for a job, and to one GPU.

    transformers would replicate the model on all visible GPUs, and TRL refuses to train a replicated model. A single
    process uses the first GPU unless the user, the cluster or a lease has set CUDA_VISIBLE_DEVICES. A rank uses one.
    """
    if processes.num_processes() == 1:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    with quick_imports():
        import torch
    processes.end_with_launcher()

    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@contextmanager
def open_record(
    out: Path, stage: str, run: dict[str, Any], settings: Any, inputs: dict[str, Path], tracking: Path | None
) -> Iterator["StageRecord"]:
    """Open the record of a product when no other process writes it; log the start and the end of the stage.

    Only rank 0 writes; other ranks get a record that writes nothing. All ranks are connected inside of the block.

    Args:
        out: the folder of the product.
        stage: `measure_speed`, `sft`, `train` or `evaluate`.
        run: the place in the grid: model, dataset, ...
        settings: all settings of the stage.
        inputs: name -> file or folder that the stage reads.
        tracking: the tracking.json of the study, or None.
    """
    from nested_reft.records.files import read_json
    from nested_reft.records.lock import lock_product
    from nested_reft.records.stage_record import SilentRecord, StageRecord

    if processes.rank() > 0:
        processes.join()  # returns when rank 0 has opened the record
        yield SilentRecord(out)
        processes.leave()
        return
    store = read_json(tracking) if tracking else {"uri": None, "study": "unnamed", "report_to": []}
    plain = json.loads(parse.canonical(settings))
    with lock_product(out):
        record = StageRecord(out, stage, run, plain, inputs, store["uri"], store["study"], store["report_to"])
        where = ", ".join(f"{axis} {value}" for axis, value in run.items())
        log.info("%s starts (attempt %d): %s", stage, record.content["attempts"], where)
        start = time.monotonic()
        processes.join()
        try:
            yield record
        except BaseException as error:
            record.abandon("KILLED" if isinstance(error, PreemptedError | KeyboardInterrupt) else "FAILED")
            raise
        processes.leave()
        log.info("%s ends after %.1f s: %s", stage, time.monotonic() - start, out)


SkipRatios = Annotated[str, typer.Option(help="Skip ratios, separated by commas.")]
Border = Annotated[int, typer.Option(min=1, help="b: only the layers i with b <= i < N-b can be skipped.")]


def read_ratios(skip_ratios: str) -> list[float]:
    """Return comma-separated ratios as numbers.

    Raises:
        UserError: a ratio is not a number from 0 to below 1.
    """
    try:
        ratios = [float(ratio) for ratio in skip_ratios.split(",")]
    except ValueError:
        ratios = []
    if not ratios or not all(0 <= ratio < 1 for ratio in ratios):
        raise UserError(
            f"--skip-ratios is {skip_ratios!r}; give numbers from 0 to below 1, for example 0.05,0.10,0.15"
        )
    return ratios


def options_of(section: type[sections.Section]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds an option to a command for each key of a section that is not a parameter yet.

    The name, the type, the default and the help of an option are those of the key. The command receives the options
    as keyword arguments.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command).parameters.values()
        parameters = [parameter for parameter in own if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
        names = {parameter.name for parameter in parameters}
        for name, field in section.model_fields.items():
            if name not in names:
                parameters.append(
                    inspect.Parameter(
                        name,
                        inspect.Parameter.KEYWORD_ONLY,
                        default=field.default,
                        annotation=Annotated[field.annotation, typer.Option(help=field.description)],
                    )
                )
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return decorate
