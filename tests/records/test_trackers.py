"""Trackers other than MLflow: what they are sent, and that no stage depends on them."""

import sys
from types import SimpleNamespace
from typing import get_args

import pytest

from nested_reft.config.sections import Tracking
from nested_reft.records import trackers
from nested_reft.records.files import read_rows, read_versioned_json
from nested_reft.records.stage_record import StageRecord
from nested_reft.records.trackers import TRACKERS, Sink, missing_trackers, trackers_problem

RUN = {"model": "tiny", "dataset": "mixed", "skip_ratio": 0.15, "border": 1, "mitigation": "retrace", "seed": 0}


def record_steps(folder, report_to):
    """Record a training of two steps that reports to these trackers."""
    record = StageRecord(folder, "train", RUN, {"training": {"max_steps": 2}}, {}, None, "study", report_to)
    for step in (1, 2):
        record.log(step, {"reward": step / 2, "nesting/skipped_layers": [1]})
    record.finish({"mean_reward": 0.75})


def test_the_names_in_the_configuration_are_those_of_the_trackers():
    (names,) = get_args(Tracking.model_fields["report_to"].annotation)
    assert set(get_args(names)) == set(TRACKERS)


def test_a_tracker_gets_the_numbers_of_each_step_and_the_result(tmp_path, monkeypatch):
    sent = []
    sink = Sink(lambda numbers, step: sent.append((step, numbers)), lambda: sent.append("closed"))
    monkeypatch.setitem(TRACKERS, "wandb", lambda record, folder: sink)
    record_steps(tmp_path / "run", ["wandb"])
    assert sent == [(1, {"reward": 0.5}), (2, {"reward": 1.0}), (3, {"result/mean_reward": 0.75}), "closed"]


def fail(*arguments):
    raise RuntimeError("the disk is full")


@pytest.mark.parametrize(
    "opened",
    [fail, lambda *_: Sink(fail, fail), lambda *_: Sink(lambda *_: None, fail)],
    ids=["at the start", "at a step", "at the end"],
)
def test_a_tracker_that_fails_is_named_once_and_nothing_else_happens(opened, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(TRACKERS, "wandb", opened)
    record_steps(tmp_path / "run", ["wandb"])
    assert caplog.messages == ["wandb failed (the disk is full); the files of the results have all metrics"]
    assert read_versioned_json(tmp_path / "run/metrics.json") == {"mean_reward": 0.75}
    assert len(read_rows(tmp_path / "run/metrics.jsonl")) == 2


def test_wandb_stays_offline_and_a_resumed_stage_continues_its_run(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    opened = []
    run = SimpleNamespace(log=lambda numbers, step: None, finish=lambda: None)
    fake = SimpleNamespace(init=lambda **options: opened.append(options) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for _ in range(2):  # the second attempt continues the first
        StageRecord(tmp_path / "run", "train", RUN, {}, {}, None, "study", ["wandb"])
    first, second = opened
    assert first == second and first["mode"] == "offline" and first["resume"] == "allow"
    assert first["name"] == "15% retrace s0 | tiny mixed" and first["project"] == "study"
    monkeypatch.setenv("WANDB_MODE", "online")
    StageRecord(tmp_path / "run", "train", RUN, {}, {}, None, "study", ["wandb"])
    assert opened[2]["mode"] == "online"


def test_trackio_logs_into_the_project_of_the_study(tmp_path, monkeypatch):
    calls = []
    fake = SimpleNamespace(
        init=lambda **options: calls.append(options),
        log=lambda numbers, step: calls.append((step, numbers)),
        finish=lambda: calls.append("finish"),
    )
    monkeypatch.setitem(sys.modules, "trackio", fake)
    record_steps(tmp_path / "run", ["trackio"])
    assert calls[0]["project"] == "study" and calls[1] == (1, {"reward": 0.5}) and calls[-1] == "finish"


def test_tensorboard_writes_events_beside_the_product(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "run/tensorboard").mkdir(parents=True)
    (tmp_path / "run/tensorboard/events.out.tfevents.of-an-earlier-product").touch()
    record_steps(tmp_path / "run", ["tensorboard"])
    assert len(list((tmp_path / "run/tensorboard").iterdir())) == 1
    events = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward")] == [(1, 0.5), (2, 1.0)]
    assert events.Scalars("result/mean_reward")[0].value == 0.75


def test_a_tracker_that_is_not_installed_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "wandb" else object())
    assert missing_trackers(["tensorboard", "wandb"]) == ["wandb"]
    problem = trackers_problem(["tensorboard", "wandb"])
    assert problem is not None and "names wandb, which is not installed; run `pip install wandb`" in problem
    assert trackers_problem(["tensorboard"]) is None
