"""Finding the files of a product by the path that a user gives, and whether a product is finished."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nested_reft.config.layout import EVALUATE
from nested_reft.errors import UserError
from nested_reft.records.files import checksum, first_damaged, read_versioned_json

EVALUATION_FILES = ("records.parquet", "metrics.json", "run.json")


def evaluation_folder(path: Path) -> Path:
    """Return the folder of an evaluation.

    Args:
        path: that folder, or the folder of a warm-up or a training that was evaluated, or its folder `model`.

    Raises:
        UserError: the path leads to no finished evaluation.
    """
    if not path.is_dir():
        raise UserError(
            f"{path} is not a folder; give that of an evaluation, results/<study>/evaluate/..., or that of an "
            "evaluated training, results/<study>/train/..."
        )
    folder = path.resolve()
    if folder.name == "model":
        folder = folder.parent
    stage = read_versioned_json(folder / "run.json")["stage"] if (folder / "run.json").exists() else ""
    results = next((parent.parent for parent in folder.parents if parent.name == stage), None)
    if stage in ("sft", "train") and results:  # the folder of a training may have been copied out of its study
        folder = results / EVALUATE.format(product=folder.relative_to(results))
    if not all((folder / name).exists() for name in EVALUATION_FILES):
        raise UserError(
            f"{path} holds no finished evaluation ({', '.join(EVALUATION_FILES)}); give a folder such as "
            "results/<study>/evaluate/..., or that of an evaluated training, results/<study>/train/..."
        )
    return folder


def evaluated_product(evaluation: Path) -> Path | None:
    """Return the folder of the warm-up or training that an evaluation of a study is about; None for any other."""
    for parent in evaluation.parents:
        if parent.name == "evaluate":
            product = parent.parent / evaluation.relative_to(parent)
            return product if (product / "model").is_dir() else None
    return None


def is_finished(folder: Path, settings: Mapping[str, Any], inputs: Mapping[str, Path]) -> bool:
    """Return whether a folder holds an undamaged product with these settings, made from these inputs.

    Args:
        folder: the folder of the product.
        settings: all settings of its stage.
        inputs: name -> file or folder that its stage reads.
    """
    if not (folder / "run.json").exists():
        return False
    run = read_versioned_json(folder / "run.json")
    read = {name: entry["sha256"] for name, entry in run["inputs"].items()}
    return bool(
        run["settings"] == settings
        # Snakemake deletes outputs before it starts a job
        and run["outputs"].keys() & {"model", "records.parquet", "metrics.jsonl"}
        and read == {name: checksum(path) for name, path in inputs.items()}
        and first_damaged(folder, run["outputs"]) is None
    )
