"""The record of a stage: what it writes, and what it takes over from an interrupted attempt."""

from nested_reft.records import mlflow_mirror
from nested_reft.records.files import read_json
from nested_reft.records.stage_record import SilentRecord
from tests.records.conftest import record_in, run_stage


def test_a_half_written_row_is_left_out_at_resume(tmp_path):
    record_in(tmp_path, "run", None).log(1, {"reward": 0.0})
    with (tmp_path / "run/checkpoints/metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "rew')  # the machine went down here
    again = record_in(tmp_path, "run", None)
    again.resume_at(2)
    assert [row["step"] for row in again.rows] == [1]


def test_a_checkpoint_without_its_settings_is_not_trusted(tmp_path):
    record_in(tmp_path, "run", None).log(1, {"reward": 0.0})
    (tmp_path / "run/checkpoints/started.json").unlink()
    again = record_in(tmp_path, "run", None)
    again.resume_at(1)
    assert again.rows == []


def test_checkpoints_of_other_settings_are_dropped_and_the_log_says_why(tmp_path, caplog):
    record_in(tmp_path, "run", None).log(1, {"reward": 0.0})
    (tmp_path / "run/checkpoints/checkpoint-1").mkdir()
    again = record_in(tmp_path, "run", None)
    again.resume_at(1)
    assert len(again.rows) == 1 and (tmp_path / "run/checkpoints/checkpoint-1").exists() and not caplog.messages
    other = record_in(tmp_path, "run", None, {"training": {"learning_rate": 2e-4}})
    other.resume_at(1)
    assert other.rows == [] and not (tmp_path / "run/checkpoints/checkpoint-1").exists()
    assert caplog.messages == [
        f"{tmp_path / 'run'} does not continue its interrupted attempt, because training.learning_rate was 0.0001 and "
        "is 0.0002; it starts anew"
    ]


def test_run_json_says_what_was_run_on_what(tmp_path):
    run_stage(tmp_path, "run", None)
    run = read_json(tmp_path / "run/run.json")
    assert run["settings"] == {"training": {"learning_rate": 1e-4}}
    assert run["provenance"]["packages"]["trl"].startswith("1.16.")
    assert run["provenance"]["git_commit"]


def test_no_password_is_recorded_or_logged(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(mlflow_mirror, "SECONDS_AT_THE_END", 1.0)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "planted-user")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "planted-password")
    run_stage(tmp_path, "run", "http://planted-user:planted-password@127.0.0.1:9")
    assert "MLflow lacks metrics" in caplog.text and "127.0.0.1" in caplog.text  # an address was logged
    texts = [caplog.text, *(path.read_text() for path in tmp_path.rglob("*") if path.is_file())]
    assert len(texts) == 4  # the log, metrics.jsonl, metrics.json, run.json
    assert not any("planted" in text for text in texts)


def test_the_record_of_another_rank_writes_nothing(tmp_path):
    record = SilentRecord(tmp_path / "run")
    record.resume_at(0)
    record.log(1, {"reward": 0.5})
    record.finish({"mean_reward": 0.5})
    assert [row["reward"] for row in record.rows] == [0.5] and not record.is_written
    assert list(tmp_path.iterdir()) == []
