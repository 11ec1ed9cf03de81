"""The commands for maintainers."""

from typer.testing import CliRunner

from nested_reft.cli import app
from tests.conftest import ROOT


def test_schema_writes_what_is_in_the_repository(tmp_path):
    assert CliRunner().invoke(app, ["schema", str(tmp_path)]).exit_code == 0
    for name in ("schema.json", "README.md"):
        assert (tmp_path / name).read_text() == (ROOT / "config" / name).read_text()
