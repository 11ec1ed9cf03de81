"""The commands for the MLflow store."""

from tests.conftest import run


def test_a_store_that_cannot_be_opened_ends_the_command_with_one_sentence(tmp_path):
    out = tmp_path / "tracking.json"
    ended = run("nested-reft", "tracking-store", "--uri", "htp://x", "--study", "s", "--out", str(out))
    assert ended.returncode == 2 and not out.exists()
    assert (
        ended.stderr.startswith("Error: the MLflow store 'htp://x' cannot be opened") and ended.stderr.count("\n") == 1
    )
