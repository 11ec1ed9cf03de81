"""Paths, commands, a small model and one complete smoke study for tests of several folders."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from nested_reft.startup import quick_imports

ROOT = Path(__file__).parent.parent
SMOLLM2 = ROOT / "models" / "smollm2-135m-instruct"  # a pretrained model, which `make smollm2` writes
needs_smollm2 = pytest.mark.skipif(not SMOLLM2.is_dir(), reason="models/smollm2-135m-instruct is missing")
# Real datasets. Users get them from the hub, and the repository contains no row of them.
DATA = Path(os.environ.get("NESTED_REFT_DATA", "/nowhere"))
TINY = ROOT / "nested_reft" / "embedded" / "tiny-28"
# The grid of `smoke_study`: that of config/smoke.yaml with one more mitigation.
SMOKE_GRID = "grid={model: [tiny-28], dataset: [mixed], skip_ratio: [0.15], mitigation: [base, practical, retrace]}"

# No test may reach a network; a test that tries to fails.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect the tests, whose modules import torch, transformers and TRL, as a command imports these."""
    with quick_imports():
        return (yield)


def needs_data(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test with `data`, and skip it where the folder of real data is missing."""
    skip = pytest.mark.skipif(not DATA.is_dir(), reason="NESTED_REFT_DATA is not a folder of real data")
    return pytest.mark.data(skip(test))


def needs_vllm(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test with `vllm`, and skip it where vLLM is missing."""
    missing = importlib.util.find_spec("vllm") is None
    return pytest.mark.vllm(pytest.mark.skipif(missing, reason="vLLM is missing; see `make test-vllm`")(test))


def start(*arguments: str, cwd: Path = ROOT) -> subprocess.Popen[str]:
    """Start a command of this environment, and return its process, whose output is read through pipes.

    PATH lacks the environment's folder, as in a shell in which the environment is not activated.
    """
    binaries = Path(sys.executable).parent
    others = [
        folder for folder in os.environ["PATH"].split(os.pathsep) if Path(folder).resolve() != binaries.resolve()
    ]
    environment = os.environ | {"PATH": os.pathsep.join(others)}
    command = [str(binaries / arguments[0]) if (binaries / arguments[0]).exists() else arguments[0], *arguments[1:]]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=cwd, env=environment, text=True, **pipes)


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a command of this environment and return its exit status and output, as `start` does."""
    with start(*arguments, cwd=cwd) as process:
        printed = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, *printed)


def snakemake(directory: Path, *arguments: str, cores: int = 2) -> subprocess.CompletedProcess[str]:
    """Run the workflow with the given working directory."""
    fixed = ["snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(directory)]
    return run(*fixed, "--cores", str(cores), *arguments)


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """Undo what a test, or a command that it calls in this process, changes in the environment variables."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def smoke_study(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Return the directory of a finished smoke study, whose four runs were trained at once into a fresh store.

    The file `terminal.txt` holds what the command printed. Parallel test processes (`pytest -n 2`) build the study
    once, in their common folder, and each of them gets a copy, because Snakemake locks a folder in which it works.
    """
    common = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        common = common.parent
    original = common / "smoke-study"
    with FileLock(common / "smoke-study.lock"):
        if not (original / "terminal.txt").exists():
            shutil.rmtree(original, ignore_errors=True)
            build_smoke_study(original)
    directory = tmp_path_factory.mktemp("smoke") / "study"
    shutil.copytree(original, directory, symlinks=True)
    return directory


def build_smoke_study(directory: Path) -> None:
    """Run the smoke study with `SMOKE_GRID` in a new folder."""
    directory.mkdir()
    configured = ("--configfile", str(ROOT / "config/smoke.yaml"), "--config", SMOKE_GRID)
    finished = snakemake(directory, *configured, cores=4)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    (directory / "terminal.txt").write_text(finished.stdout + finished.stderr)


@pytest.fixture(scope="session")
def real_mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a mirror of the real data under their names on the hub. SVAMP is one file without splits."""
    mirror = tmp_path_factory.mktemp("mirror")
    entries = {
        "openai/gsm8k": "gsm8k",
        "lkevinzc/math-eval": "math-eval",
        "ChilleD/SVAMP/SVAMP.json": "svamp/SVAMP.json",
    }
    for name, path in entries.items():
        (mirror / name).parent.mkdir(parents=True)
        (mirror / name).symlink_to(DATA / path)
    return mirror


@pytest.fixture(scope="session")
def wide_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a random Qwen2 model of six layers, whose heads of size 32 vLLM supports on a CPU.

    Its tokenizer is that of tiny-28.
    """
    import torch
    from transformers import AutoTokenizer

    from tests.model.families import build

    folder = tmp_path_factory.mktemp("models") / "wide-heads"
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = build("qwen2", **sizes, head_dim=32, max_position_embeddings=1024, tie_word_embeddings=True)
    model.generation_config.eos_token_id = [2, 0]
    assert model.dtype == torch.float32
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture()
def small_model():
    """Return a fresh random Qwen2 model of six narrow layers, in evaluation mode, whose weights are seeded."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=487,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=6,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    return Qwen2ForCausalLM(config).eval()
