"""The weight files of a model: that they are complete, and how many parameters they hold. Torch is not needed."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from nested_reft.errors import UserError

if TYPE_CHECKING:  # bench/gpu.py loads models without the libraries that a configuration needs
    from nested_reft.config.sections import ModelSource

INDEX = "model.safetensors.index.json"
REMEDY = "download or copy the model again (`git lfs pull` in a clone)"


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model: one file, or the files that its index lists.

    Raises:
        UserError: the folder has none of them, or lacks one that the index lists.
    """
    names = ["model.safetensors"]
    if (folder / INDEX).exists():
        names = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
    missing = [name for name in names if not (folder / name).exists()]
    if not missing:
        return [folder / name for name in names]
    others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if others:
        raise UserError(
            f"model {folder} has its weights only as {others[0]}, but only safetensors are read; load the model where "
            "you trust it and call its `save_pretrained`, which writes model.safetensors"
        )
    if ggufs := sorted(folder.glob("*.gguf")):
        raise UserError(
            f"model {folder} has its weights only as {ggufs[0].name}; run `nested-reft prepare gguf {ggufs[0]}`, and "
            "give the folder that it writes"
        )
    if not (folder / "config.json").exists():
        inner = f"; its folder {folder / 'model'} is one" if (folder / "model/config.json").exists() else ""
        raise UserError(f"{folder} is not a model, because it has no config.json; give the folder of a model{inner}")
    raise UserError(f"model {folder} lacks the weights {missing[0]}; {REMEDY}")


def downloaded_folder(source: "ModelSource") -> Path | None:
    """Return the folder of a model, or None for a model that is not downloaded completely, or not dequantised yet."""
    if source.local_path is not None or source.gguf_file is not None:
        return source.local_path
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(source.path, revision=source.revision, local_files_only=True))
        weight_files(folder)
    except (OSError, UserError):
        return None
    return folder


def count_parameters(folder: Path) -> int:
    """Return the number of parameters in the weight files of a model, from the headers of the files.

    Raises:
        UserError: a weight file is missing or incomplete.
    """
    return sum(count_in_file(path) for path in weight_files(folder))


def count_in_file(path: Path) -> int:
    """Return the number of parameters in a safetensors file: 8 bytes with the size of the header, header, tensors.

    Raises:
        UserError: the file is not complete.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if not 0 < header_size < size:
            raise UserError(f"{path} is not a file of weights ({size:,} bytes); {REMEDY}")
        tensors = json.loads(file.read(header_size))
    tensors.pop("__metadata__", None)
    end = 8 + header_size + max(tensor["data_offsets"][1] for tensor in tensors.values())
    if size < end:
        raise UserError(f"{path} is cut off: it has {size:,} of {end:,} bytes; {REMEDY}")
    return sum(math.prod(tensor["shape"]) for tensor in tensors.values())
