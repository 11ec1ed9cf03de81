"""Whether the products of a study are what its stages wrote, with the settings and from the inputs of today.

A product is the folder of a measurement, a warm-up, a training or an evaluation. Its `run.json` holds the settings of
its stage, and the checksums of what the stage read and wrote. Prepared data have a manifest with their checksums, and
the note about a dequantised model has the checksum of its folder.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from nested_reft.config import stage_settings
from nested_reft.config.layout import BENCHMARKS, DATASET, PRETRAINED
from nested_reft.config.parse import flatten, parse_settings
from nested_reft.config.sections import Section
from nested_reft.config.study import Study
from nested_reft.errors import UserError
from nested_reft.records.files import checksum, read_json, read_versioned_json
from nested_reft.records.provenance import collect_provenance
from nested_reft.study.jobs import STAGES, Folders, axes_of, job_paths, stage_of
from nested_reft.study.status import started_file

SECTIONS: dict[str, type[Section]] = {
    "measure_speed": stage_settings.MeasureSpeedStage,
    "sft": stage_settings.SftStage,
    "train": stage_settings.TrainStage,
    "evaluate": stage_settings.EvaluateStage,
}


class Fault(NamedTuple):
    """What is wrong with a product.

    Attributes:
        kind: `damaged` differs from what the stage wrote; `stale` was made with other settings, from other inputs or
            by another commit; `orphaned` belongs to no job of the study.
        path: the path of the product below the results.
        sentence: what was found.
    """

    kind: Literal["missing", "unfinished", "damaged", "stale", "orphaned"]
    path: str
    sentence: str


def started_settings(results: Path) -> Study:
    """Return the settings with which a study was started last.

    Args:
        results: the folder of its results, `results/<study>`.

    Raises:
        UserError: no study with such results was started in the working directory.
    """
    file = started_file(results.absolute().parent.parent, results.name)
    if not file.exists() or "settings" not in (content := read_json(file)):
        raise UserError(
            f"{results} is not the folder results/<study> of a study that this version of nested-reft has started; "
            "give the YAML file of the study"
        )
    study: Study = parse_settings(Study, content["settings"])
    return study


def changed_keys(settings: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return the keys in which two settings differ."""
    one, other = flatten(settings), flatten(wanted)
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def settings_today(study: Study, path: str) -> dict[str, Any]:
    """Return the settings that the stage of a job would get from the study."""
    stage, axes = stage_of(path), axes_of(path)
    if stage == "evaluate":
        axes = {"product": path.split("/")[1]} | axes
    return parse_settings(SECTIONS[stage], stage_settings.settings_of(study, stage, axes)).model_dump(mode="json")


def output_faults(folder: Path, path: str, outputs: Mapping[str, str], keeps_models: bool) -> Iterator[Fault]:
    """Yield a fault for each file or folder of a product that is missing or differs from what the stage wrote."""
    for name, digest in outputs.items():
        if not (folder / name).exists():
            if name != "model" or keeps_models:
                yield Fault("missing", path, f"{name} is missing")
        elif checksum(folder / name) != digest:
            yield Fault("damaged", path, f"{name} is not what the stage wrote: its checksum differs")


def input_faults(directory: Path, path: str, inputs: Mapping[str, Mapping[str, str]]) -> Iterator[Fault]:
    """Yield a fault for each input that has changed since the stage read it. A deleted input is not a fault."""
    for name, read in inputs.items():
        place = directory / read["path"]
        if place.exists() and checksum(place) != read["sha256"]:
            yield Fault("stale", path, f"its input {name} ({read['path']}) has changed since")


def product_faults(directory: Path, study: Study, path: str, commits: Counter[str]) -> Iterator[Fault]:
    """Yield the faults of the product of a job, and count the commit that made it.

    Args:
        directory: the working directory of the study.
        study: the configuration of the study.
        path: the path of the job below the results.
        commits: the number of products by commit so far.
    """
    folder = Folders.of(directory, study.study).results / path
    if not (folder / "run.json").exists():
        is_begun = (folder / "checkpoints").exists()
        if is_begun:
            yield Fault("unfinished", path, "has checkpoints, with which the study goes on, but no result")
        else:
            yield Fault("missing", path, "has not been made")
        return
    try:
        record = read_versioned_json(folder / "run.json")
    except UserError as error:
        yield Fault("damaged", path, str(error))
        return
    commits[record["provenance"]["git_commit"]] += 1
    if "outputs" not in record:
        yield Fault("stale", path, "run.json has no checksums, because an earlier version of nested-reft wrote it")
    yield from output_faults(folder, path, record.get("outputs", {}), study.jobs.keep_models)
    yield from input_faults(directory, path, record["inputs"])
    if changed := changed_keys(record["settings"], settings_today(study, path)):
        yield Fault("stale", path, f"was made with another {', '.join(changed)}")


def data_faults(results: Path, study: Study) -> Iterator[Fault]:
    """Yield a fault for each file of prepared data that is missing or differs from what its manifest says."""
    files = [BENCHMARKS, *(DATASET.format(dataset=name) for name in study.grid.dataset)]
    for path in files:
        file, manifest = results / path, (results / path).with_suffix(".manifest.json")
        if not file.exists() or not manifest.exists():
            yield Fault("missing", path, "has not been prepared")
            continue
        digest = read_json(manifest)["sha256"]
        if checksum(file) != (digest if isinstance(digest, str) else digest["rows"]):
            yield Fault("damaged", path, "is not what was prepared: its checksum differs from that in its manifest")


def model_faults(directory: Path, study: Study) -> Iterator[Fault]:
    """Yield a fault for each dequantised model that is missing or differs from what `prepare model` wrote."""
    for name in study.grid.model:
        path = f"{PRETRAINED.format(model=name)}/model.json"
        note = Folders.of(directory, study.study).results / path
        if not note.exists() or "sha256" not in (content := read_json(note)):
            continue
        folder = directory / content["path"]
        if not folder.exists():
            yield Fault("missing", path, f"the dequantised model {content['path']} is missing")
        elif checksum(folder) != content["sha256"]:
            sentence = f"the dequantised model {content['path']} is not what was prepared: its checksum differs"
            yield Fault("damaged", path, sentence)


def orphans(results: Path, paths: Iterable[str]) -> Iterator[Fault]:
    """Yield a fault for each product below the results that no job of the study makes."""
    known = set(paths)
    for stage in STAGES:
        for file in sorted((results / stage).rglob("run.json")):
            path = str(file.parent.relative_to(results))
            if path not in known:
                yield Fault("orphaned", path, "no job of the study makes it")


def commit_faults(commits: Counter[str]) -> Iterator[Fault]:
    """Yield a fault for each other commit of the code, given the number of products by the commit that made them."""
    now = collect_provenance()["git_commit"]
    for commit, number in sorted(commits.items()):
        if commit != now:
            sentence = f"made by commit {commit[:12]}, and the code is now at {now[:12]}"
            yield Fault("stale", f"{number} of {commits.total()} products", sentence)


def faults(directory: Path, study: Study, paths: Iterable[str]) -> Iterator[Fault]:
    """Yield what is wrong with the products of a study, each with its path below the results.

    Args:
        directory: the working directory of the study.
        study: the configuration of the study.
        paths: the paths of its jobs, as `job_paths` gives them; a caller may show how far the iteration is.
    """
    commits: Counter[str] = Counter()
    yield from data_faults(Folders.of(directory, study.study).results, study)
    yield from model_faults(directory, study)
    for path in paths:
        yield from product_faults(directory, study, path, commits)
    yield from orphans(Folders.of(directory, study.study).results, job_paths(study))
    yield from commit_faults(commits)
