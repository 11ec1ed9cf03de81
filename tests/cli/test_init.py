"""The command `init`, which writes a study and checks it."""

from typer.testing import CliRunner

from nested_reft.cli import app


def test_a_study_that_cannot_start_yet_is_written_and_the_command_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "htp://x")
    arguments = ["init", "mine", "--model", "embedded/tiny-28", "--data", "embedded/one-step"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    problem, hint = done.stderr.splitlines()
    assert problem.startswith("Error: the MLflow store 'htp://x' cannot be opened")
    assert hint == "mine.yaml is written all the same. Remove the cause, then run `nested-reft check mine.yaml`."
    assert (tmp_path / "mine.yaml").exists() and "mine.yaml   " not in done.stdout
