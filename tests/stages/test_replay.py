"""The record of completions and its replay, against what trainings with several mitigations have logged."""

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from nested_reft.cli import app
from nested_reft.config.sections import Nesting
from nested_reft.errors import UserError
from nested_reft.records.files import read_rows
from nested_reft.stages.replay import largest_difference, replay, settings_of
from tests.stages.test_train import SMALL, equal, logged, replayed, train_run, untimed, weights


def check_record(folder):
    """Check the columns of a record against the log of the run."""
    assert [path.name for path in sorted((folder / "completions").iterdir())] == [
        f"completions_{step:05d}-{step:05d}.parquet"
        for step in (1, 2, 3)  # SMALL saves a checkpoint in each step
    ]
    rows = pd.read_parquet(folder / "completions")
    assert len(rows) == 3 * 8
    for step, metrics in enumerate(read_rows(folder / "metrics.jsonl"), start=1):
        of_step = rows[rows["step"] == step]
        assert of_step["rewards/first_answer_correctness"].mean() == metrics["reward"]
        assert [set(map(int, layers)) for layers in of_step["skipped_layers"]] == [
            set(metrics["nesting/skipped_layers"])
        ] * 8
        assert of_step.groupby("prompt")["advantage"].mean().abs().max() < 1e-6  # G completions of each prompt
        assert (of_step["completion_mask"].map(sum) == 26).all() and (of_step["prompt_ids"].map(len) > 26).all()
    ratio = (rows["old_per_token_logps"] - rows["sampling_per_token_logps"]).map(lambda logs: torch.tensor(logs).exp())
    for mine, recorded in zip(ratio, rows["token_weights"], strict=True):
        assert torch.equal(mine, torch.tensor(recorded))  # the weight of `base` is the ratio


def test_a_record_changes_nothing_and_replays_its_run_and_the_first_step_of_others_bit_for_bit(tmp_path, data):
    recorded = SMALL.model_copy(update={"log_completions": True})
    without = train_run(tmp_path / "without", data, 0.15, "retrace")
    retrace, practical, base = folders = [
        train_run(tmp_path / name, data, 0.15, name, recorded) for name in ("retrace", "practical", "base")
    ]
    # The same seed gives the same run.
    assert equal(weights(without), weights(retrace)) and untimed(without) == untimed(retrace)
    assert (without / "skipped_layers.jsonl").read_text() == (retrace / "skipped_layers.jsonl").read_text()
    assert not (without / "completions").exists()
    # Mitigations give different runs.
    trained = [weights(folder) for folder in folders]
    assert not any(equal(trained[i], trained[j]) for i, j in ((0, 1), (0, 2), (1, 2)))

    check_record(base)
    for folder in folders:
        for other in folders:
            rows = replayed(folder, other.name)
            if folder == other:
                assert rows == logged(other, rows)
            else:  # later completions come from policies that another mitigation has trained
                assert rows[0] == logged(other, rows)[0] and rows[1] != logged(other, rows)[1]

    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["replay", str(base), "--out", str(out)])
    assert done.exit_code == 0 and "The replay of base equals what the run has logged." in done.output
    assert sorted(path.name for path in out.iterdir()) == [
        *("replay.csv", "replay.png", "replay.svg", "token_weights.csv")
    ]
    table = pd.read_csv(out / "replay.csv", float_precision="round_trip").set_index(["mitigation", "step"])
    (first, *_) = read_rows(practical / "metrics.jsonl")
    assert all(table.loc[("practical", 1)][name] == first[name] for name in table.columns)
    counts = pd.read_csv(out / "token_weights.csv").groupby("mitigation")["tokens"].sum()
    assert (counts == 3 * 8 * 26).all() and len(counts) == 11

    # The parameters of the mitigations, and the level of the ratio, can be others than those of the run.
    settings = settings_of(retrace, {"retrace_lambda": 0.5, "ratio_level": None})
    assert settings.nesting == Nesting(retrace_lambda=0.5)
    half = list(replay(retrace, ["retrace"], settings.nesting, settings.training))
    mean = "sampling/importance_sampling_ratio/mean"
    rows = read_rows(retrace / "metrics.jsonl")
    assert [row[mean] for row in half] == pytest.approx([row[mean] / 2 for row in rows])
    assert largest_difference(half, rows) > 0.4
    (base / "completions/completions_00002-00002.parquet").unlink()
    with pytest.raises(UserError, match=r"base/completions lacks the file with the completions of step 2; restore it"):
        replayed(base, "base")
    with pytest.raises(UserError, match=r"without has no record of its completions; set training.log_completions to"):
        replayed(without, "base")


def test_a_replay_of_the_mixture_is_that_of_its_run_bit_for_bit(tmp_path, data):
    recorded = SMALL.model_copy(update={"log_completions": True, "max_steps": 1})
    base = train_run(tmp_path / "base", data, 0.15, "base", recorded, Nesting(whole_share=0.5))
    rows = replayed(base, "base")
    assert rows == logged(base, rows)
    table = pd.read_parquet(base / "completions")
    assert table["is_whole"].sum() == 4 and (table.groupby("prompt")["is_whole"].sum() == 2).all()
    assert max(map(max, table["token_weights"])) < 2
