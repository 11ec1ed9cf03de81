"""Failures of the machine: of its disk, as the system, torch and safetensors report it, of its memory and its GPU."""

import errno

import pytest
import torch
from safetensors import SafetensorError

from nested_reft import cli
from nested_reft.cli.failures import explain


def test_a_full_disk_is_recognized_whoever_reports_it():
    assert "is full" in explain(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(RuntimeError) as error:
        torch.save({"weight": torch.zeros(1000, 1000)}, "/dev/full")
    assert "run the same command again" in explain(error.value)
    assert explain(SafetensorError("I/O error: No space left on device (os error 28)"))


def test_a_full_disk_behind_another_error_is_recognized():
    with pytest.raises(RuntimeError) as error:
        try:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        except OSError as cause:
            raise RuntimeError("could not save") from cause
    assert "quota" in explain(error.value)


def test_too_little_gpu_memory_names_the_keys():
    assert "training.per_device_train_batch_size" in explain(torch.OutOfMemoryError("CUDA out of memory"))


def test_a_file_that_may_not_be_written_is_named():
    sentence = explain(PermissionError(errno.EACCES, "Permission denied", "results/run.json"))
    assert sentence.startswith("results/run.json cannot be read or written (Permission denied); ")
    assert "(Read-only file system)" in explain(SafetensorError("I/O error: Read-only file system (os error 30)"))


def test_too_little_memory_of_the_machine_is_recognized():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert "fewer jobs at once" in explain(error.value) and "fewer jobs at once" in explain(MemoryError())


def test_a_gpu_that_torch_cannot_use_is_recognized():
    assert "jobs.gpus to 0" in explain(RuntimeError("No CUDA GPUs are available"))


def test_any_other_error_keeps_its_traceback():
    assert explain(ValueError("a defect")) is None


@pytest.mark.parametrize(("error", "code"), [(OSError(errno.ENOSPC, "full"), 1), (ValueError("a defect"), None)])
def test_the_command_line_prints_the_sentence(error, code, monkeypatch, capsys):
    def fail():
        raise error

    monkeypatch.setattr(cli, "app", fail)
    if code is None:
        with pytest.raises(ValueError):
            cli.main()
        return
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    assert capsys.readouterr().err.startswith("Error: the disk of ")
