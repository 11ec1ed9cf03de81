"""What SECURITY.md promises: names stay inside the results, and no file from elsewhere is executed."""

import ast
import copy
import re

import pytest
import yaml

from nested_reft.config.parse import parse_settings
from nested_reft.config.study import Study
from nested_reft.errors import UserError
from tests.conftest import ROOT

STUDY = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
OUTSIDE = [
    "..",
    "../x",
    "/tmp/x",
    "a/b",
    "a\\b",
    ".hidden",
    "~",
    "a\x00b",
    "a\nb",
    "a\x1b[2J",
    "",
    " ",
    "a b",
    "é",
    "-x",
]
CODE = [*(ROOT / "nested_reft").rglob("*.py"), *(ROOT / "snakemake_logger_plugin_nested_reft").rglob("*.py")]


@pytest.mark.parametrize("section", ["study", "models", "datasets", "benchmarks"])
@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_cannot_lead_outside_the_results(section, name):
    """Each name is one folder of a path below `results/`."""
    study = copy.deepcopy(STUDY)
    if section == "study":
        study["study"] = name
    else:
        ((old, value), *others) = study[section].items()
        study[section] = {name: value, **dict(others)}
        axis = {"models": "model", "datasets": "dataset"}.get(section)
        if axis:
            study["grid"][axis] = [name if one == old else one for one in study["grid"][axis]]
    with pytest.raises(UserError) as refused:
        parse_settings(Study, study)
    assert "a name consists of" in str(refused.value) and str(refused.value).isprintable()


def keywords(name: str) -> set[str]:
    """Return the values that the package passes for a keyword argument, as source text."""
    calls = (node for file in CODE for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call))
    return {ast.unparse(keyword.value) for call in calls for keyword in call.keywords if keyword.arg == name}


def test_no_code_of_a_model_repository_runs_and_weights_are_safetensors():
    assert keywords("trust_remote_code") == {"False"}
    assert keywords("use_safetensors") == {"True"}


@pytest.mark.parametrize(
    "pattern", [r"\bpickle\b\.", r"torch\.load\(", r"\bshell=True", r"(?<![.\w])(eval|exec)\(", r"0\.0\.0\.0"]
)
def test_the_package_never_executes_what_it_reads(pattern):
    found = [file.name for file in CODE if re.search(pattern, file.read_text())]
    assert found == [], pattern
