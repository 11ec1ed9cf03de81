"""Models in GGUF, the file format of llama.cpp: dequantised into a folder in the format of transformers."""

import hashlib
import importlib.util
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from nested_reft.config.sections import GGUF_RECORD
from nested_reft.data.sources import first_line
from nested_reft.errors import UserError
from nested_reft.records.files import apply_umask, checksums, discard, first_damaged, read_json, write_json
from nested_reft.records.lock import lock_product

if TYPE_CHECKING:
    from transformers.integrations.gguf import GgufHeader

# Entries of tokenizer_config.json that say how a tokenizer was loaded, and nothing about the tokenizer.
OF_THE_LOADING = ("is_local", "local_files_only")


def read_header(file: Path) -> "GgufHeader":
    """Return the architecture and the table of tensors of a GGUF file, without reading the weights.

    Raises:
        UserError: the file is not a GGUF file or not complete, or the package that transformers needs is missing.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"{file} is read with the package gguf, which is not installed; `pip install .[gguf]`")
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise UserError(f"{file} is not a GGUF file, because it does not begin with GGUF; download it again")
    from transformers.integrations.gguf import GgufHeader

    try:
        header = GgufHeader.from_file(str(file))
    except Exception as error:  # the type of the error depends on the place at which the file is cut off
        raise UserError(
            f"{file} is cut off, or of a kind of GGUF that transformers does not read ({first_line(error)}); download "
            "it again"
        ) from error
    size, end = file.stat().st_size, header.data_start + max(one.offset + one.nbytes for one in header.tensors)
    if size < end:
        raise UserError(f"{file} is cut off: it has {size:,} of {end:,} bytes; download it again")
    return header


def save_dequantised(file: Path, architecture: str, folder: Path) -> None:
    """Write the model of a complete GGUF file as safetensors in float32, with its config and its tokenizer.

    Raises:
        UserError: transformers cannot read the model of this architecture or its tokenizer.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            trust_remote_code=False,
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    except Exception as error:  # the types of these errors differ from architecture to architecture
        raise UserError(
            f"{file} has the architecture {architecture!r}, and transformers {version('transformers')} cannot "
            f"read it from GGUF ({first_line(error)}); take the model in the format of transformers instead"
        ) from error
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = folder / "tokenizer_config.json"
    entries = json.loads(config.read_text())
    write_json(config, {name: value for name, value in entries.items() if name not in OF_THE_LOADING})


def prepare_gguf(file: Path, folder: Path) -> None:
    """Write the model of a GGUF file into a folder, unless the folder holds it already. The folder appears whole.

    The record `gguf.json` in the folder has the SHA-256 of the file and the checksums of what was written.

    Args:
        file: the GGUF file.
        folder: the folder of the model. What was made from another GGUF file is replaced.

    Raises:
        UserError: the file is not a GGUF file or not complete, transformers cannot read it, or the folder holds
            something else or cannot be written.
    """
    architecture = read_header(file).architecture
    elsewhere = f"run `nested-reft prepare gguf {file} FOLDER` with another folder, and give that as the model"
    if folder.exists() and not (folder / GGUF_RECORD).exists():
        raise UserError(f"{folder} exists and was not made from a GGUF file; move it, or {elsewhere}")
    above = next(place for place in folder.absolute().parents if place.exists())
    if not os.access(above, os.W_OK):
        raise UserError(f"{folder} cannot be written for lack of permission; {elsewhere}")
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    work = folder.with_name(f"{folder.name}.part")
    with lock_product(work):
        try:
            if not holds(folder, digest):
                made = work / "model"
                discard(made)  # of a process that was killed
                made.mkdir(parents=True)  # a process that this one waited for has deleted the folder above
                save_dequantised(file, architecture, made)
                apply_umask(made)
                versions = {name: version(name) for name in ("transformers", "gguf")}
                outputs = checksums(made, *sorted(path.name for path in made.iterdir()))
                record = {"file": file.name, "sha256": digest, "outputs": outputs, "packages": versions}
                write_json(made / GGUF_RECORD, record)
                discard(folder)
                made.rename(folder)
        finally:
            discard(work)  # only the holder of the lock may: another process would delete what this one writes


def holds(folder: Path, digest: str) -> bool:
    """Return whether a folder holds, undamaged, what was made from the GGUF file with this SHA-256."""
    if not (folder / GGUF_RECORD).exists():
        return False
    record = read_json(folder / GGUF_RECORD)
    return record["sha256"] == digest and first_damaged(folder, record["outputs"]) is None
