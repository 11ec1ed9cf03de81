"""The documentation site builds, and its code blocks do what they show.

Code blocks of the README and of docs/ run in the order of their page, in a folder that looks like a clone:

- `python` blocks run as one program per page, `bash` blocks and the lines after `$ ` of `console` blocks in a shell;
- the other lines of a `console` block are the expected output, in which `...` stands for anything;
- a block with a `title` is a file of that name;
- a `yaml` block is a study, or without a title a part of one, which must be valid;
- `<!-- run: slow -->` before a block leaves it to the slow tests, `<!-- not run: why -->` to nobody.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from nested_reft.config.parse import parse_settings
from nested_reft.config.study import Study
from nested_reft.config.templates import TEMPLATES
from nested_reft.data.formats import FORMATS
from nested_reft.mitigation import MITIGATIONS
from tests.conftest import ROOT

PAGES = [
    ROOT / "README.md",
    *sorted(path for path in ROOT.glob("docs/**/*.md") if "reports" not in path.relative_to(ROOT / "docs").parts),
]
BLOCK = re.compile(r"(?:<!-- (run|not run): ([^>]+?) -->\n\n)?^( *)```(\w+)([^\n]*)\n(.*?)\n\3```$", re.M | re.S)


class Block(NamedTuple):
    """A fenced code block."""

    language: str
    title: str | None
    code: str
    when: str  # `fast`, `slow`, or `never`


def blocks(page: Path) -> list[Block]:
    """Return the code blocks of a page."""
    found = []
    for order, reason, indent, language, attributes, code in BLOCK.findall(page.read_text()):
        when = {"": "fast", "run": "slow", "not run": "never"}[order]
        assert order != "run" or reason == "slow", f"{page}: {reason}"
        title = re.search(r'title="([^"]+)"', attributes)
        text = "\n".join(line.removeprefix(indent) for line in code.split("\n"))
        found.append(Block(language, title[1] if title else None, text, when))
    return found


def name_of(page: Path) -> str:
    """Return the path of a page in the repository."""
    return str(page.relative_to(ROOT))


REGISTRIES: dict[str, dict[str, Any]] = {"formats": FORMATS, "mitigations": MITIGATIONS, "templates": TEMPLATES}
RUNNABLE = ("python", "bash", "console")
FAST = [page for page in PAGES if any(one.language in RUNNABLE and one.when == "fast" for one in blocks(page))]
SLOW = [page for page in PAGES if any(one.when == "slow" for one in blocks(page))]
# The commands of the tutorial take minutes; `tests/test_own_study.py` goes the same way with a smaller study.
NIGHTLY = [ROOT / "docs/tutorial.md"]


@pytest.fixture()
def clone(tmp_path, monkeypatch):
    """Return a folder with the files of the repository that commands need, as the current folder."""
    for name in ("nested_reft", "Snakefile", "workflow", "profiles", "docs", "examples", "Makefile"):
        if (ROOT / name).exists():
            (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "config", tmp_path / "config")
    binaries = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", binaries + os.pathsep + os.environ["PATH"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shell(code: str) -> str:
    """Run a command, which must succeed, and return what it printed."""
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, f"{code}\n{done.stdout}{done.stderr}"
    return done.stdout


def check_console(code: str) -> None:
    """Run the commands of a console block, and compare what each prints with the lines after it."""
    for part in re.split(r"^\$ ", code, flags=re.M)[1:]:
        command, _, expected = part.partition("\n")
        pattern = ".*".join(re.escape(piece) for piece in expected.strip().split("..."))
        printed = shell(command).strip()
        assert re.fullmatch(pattern, printed, re.S), f"{command} prints\n{printed}\nand not\n{expected}"


def run_page(page: Path, kinds: tuple[str, ...]) -> None:
    """Do what a page says, in the current folder."""
    variables: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.title:
            Path(block.title).parent.mkdir(parents=True, exist_ok=True)
            Path(block.title).write_text(block.code + "\n")
        if block.when not in kinds:
            continue
        if block.language == "python":
            exec(compile(block.code, name_of(page), "exec"), variables)
        elif block.language == "bash":
            shell(block.code)
        elif block.language == "console":
            check_console(block.code)


@pytest.fixture()
def registries():
    """Restore afterwards the registries that pages add to."""
    before = {name: dict(registry) for name, registry in REGISTRIES.items()}
    yield
    for name, registry in REGISTRIES.items():
        registry.clear()
        registry.update(before[name])


@pytest.mark.parametrize("page", FAST, ids=name_of)
def test_the_commands_of_a_page_run(page, clone, registries):
    run_page(page, ("fast",))


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.nightly] * (page in NIGHTLY)) for page in SLOW], ids=name_of
)
def test_the_long_commands_of_a_page_run(page, clone, registries):
    run_page(page, ("fast", "slow"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_yaml_of_a_page_is_valid(page, clone):
    """A part of a study is merged into the smoke study. The data files that it names are the reader's."""
    for block in blocks(page):
        if block.language != "yaml" or block.when == "never":
            continue
        part = yaml.safe_load(block.code)
        study = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
        if block.title:
            study = {}
        for section, entries in part.items():
            study[section] = study.get(section, {}) | entries if isinstance(entries, dict) else entries
        parse_settings(Study, study)


def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path):
    """`--strict` fails for a link or an anchor that leads nowhere, but not with `--quiet`."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(tmp_path.glob("**/*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text()
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=\"?(https?:)?//", text)
        loaded += re.findall(r"<link[^>]*\srel=\"?(?:stylesheet|preconnect|icon)\"?[^>]*\shref=\"?(https?:)?//", text)
        assert not loaded, page
    for style in tmp_path.glob("**/*.css"):
        assert not re.search(r"url\(\"?(https?:)?//|@import", style.read_text()), style
    configuration = (tmp_path / "reference/configuration.html").read_text()
    assert "training.sampling_dtype" in configuration
    assert "nested-reft prepare dataset" in (tmp_path / "reference/cli.html").read_text()


def test_folders_of_the_architecture_page_exist():
    page = (ROOT / "docs/architecture.md").read_text()
    named = set(re.findall(r"^\| `(\w+)/` +\|", page, re.M))
    folders = {path.parent.name for path in ROOT.glob("nested_reft/*/__init__.py")}
    assert named == folders
