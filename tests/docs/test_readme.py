"""What the README shows is what the repository holds."""

import re

import pytest

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("table", ["stages", "table2"])
def test_tables_of_the_readme_are_those_of_the_committed_report(table):
    assert (ROOT / f"docs/reports/embedded/{table}.md").read_text().strip() in README


def test_paths_of_the_readme_exist():
    linked = re.findall(r"\]\((?!https?://)([^)#]+)\)", README)
    in_tree = [f"nested_reft/{name}" for name in re.findall(r"^  ([\w.]+\.py)", README, re.M)]
    assert len(linked) > 3 and len(in_tree) > 8
    for path in linked + in_tree:
        assert (ROOT / path).exists(), path


def test_make_targets_and_sub_commands_of_the_readme_exist():
    makefile, command_line = (ROOT / "Makefile").read_text(), (ROOT / "nested_reft/cli/__init__.py").read_text()
    for target in re.findall(r"(?:`|^)make (\w+)", README, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for command in re.findall(r"(?:`|^ *)nested-reft (\w+)", README, re.M):
        assert re.search(rf"def {command}\(|{command}_app|\"{command}\"", command_line), command


def test_the_project_speaks_of_itself_alone():
    for path in [*ROOT.glob("nested_reft/**/*.py"), *ROOT.glob("workflow/**/*"), *ROOT.glob("*.md")]:
        if path.is_file():
            assert "shared/" not in path.read_text(), path
