"""The plan of a study: rows, what fits, and what would make it fit."""

import json

import pytest

from nested_reft.config.study_file import read_study
from nested_reft.errors import UserError
from nested_reft.plan import cluster
from nested_reft.plan.cards import CARDS, GIB
from nested_reft.plan.cluster import requested
from nested_reft.plan.plan import make_plan
from nested_reft.plan.planner import USABLE_MEMORY, Planner, Row, cards_of
from nested_reft.plan.text import as_dict, elapsed_seconds, hours_figure, render
from nested_reft.study.jobs import job_paths
from tests.conftest import ROOT

PAPER = read_study(ROOT / "config/paper.yaml")
SMOKE = read_study(ROOT / "config/smoke.yaml")
SEVEN_B = "Qwen2.5-Math-7B-Instruct"


def test_the_paper_is_planned_without_a_network():
    plan = make_plan(PAPER, cards_of(PAPER, ["h100"]))
    assert [(row.stage, row.jobs) for row in plan.rows] == [
        ("measure_speed", 1),
        ("measure_speed", 1),
        ("sft", 3),
        ("sft", 3),
        ("train", 30),
        ("train", 30),
        ("evaluate", 34),
        ("evaluate", 34),
    ]
    by_name = {(row.stage, row.model): row for row in plan.rows}
    assert not by_name["train", SEVEN_B].fits
    assert by_name["train", "Qwen2.5-Math-1.5B-Instruct"].fits
    assert any(warning.startswith(f"train {SEVEN_B} needs") for warning in plan.warnings)
    text = render(plan)
    assert "does not fit" in text and "Smallest delta" in text and "GPU hours" in text
    assert json.loads(json.dumps(as_dict(plan)))["gpu_hours"] == pytest.approx(sum(row.gpu_hours for row in plan.rows))


def test_what_is_said_to_fit_fits():
    """Each remedy of one key, put into the study, removes the warning about this stage."""
    changes = [
        "grid.model=[Qwen2.5-Math-1.5B-Instruct]",
        "training.gradient_checkpointing=false",
        "training.per_device_train_batch_size=64",
    ]
    study = read_study(ROOT / "config/paper.yaml", changes)
    cards = cards_of(study, ["l40s"])
    planner = Planner(study, cards)
    row = next(row for row in planner.rows() if row.stage == "train")
    assert not row.fits
    remedies = [text.partition(" (")[0] for text in planner.fitting(row)]
    single = [remedy for remedy in remedies if remedy.startswith("training.") and " and " not in remedy]
    assert single
    for remedy in single:
        changed = read_study(ROOT / "config/paper.yaml", [*changes, remedy.replace(": ", "=")])
        fitted = next(row for row in Planner(changed, cards).rows() if row.stage == "train")
        assert fitted.largest.peak.total <= USABLE_MEMORY * CARDS["l40s"].memory


def rows_with(*changes: str) -> dict[tuple[str, str], Row]:
    study = read_study(ROOT / "config/paper.yaml", ["sft.per_device_train_batch_size=4", *changes])
    return {(row.stage, row.model): row for row in Planner(study, cards_of(study, ["h100"])).rows()}


def test_a_job_on_several_gpus():
    """Under DDP a GPU holds what one process holds; FSDP divides the state of a training, and of no evaluation."""
    own = "jobs.models={%s: {gpus: 4, distributed: %s}}"
    one, ddp, fsdp = rows_with(), rows_with(own % (SEVEN_B, "ddp")), rows_with(own % (SEVEN_B, "fsdp"))
    for stage in ("sft", "train"):
        weights, gradients, optimizer = zip(
            *(rows[stage, SEVEN_B].largest.memory["update"][:3] for rows in (one, ddp, fsdp)), strict=True
        )
        assert weights[0] == weights[1] and gradients[0] == gradients[1] == 4 * gradients[2]
        assert optimizer[0] == optimizer[1] == 4 * optimizer[2]
        assert ddp[stage, "Qwen2.5-Math-1.5B-Instruct"].largest.gpus == 1
        for rows in (ddp, fsdp):
            row, alone = rows[stage, SEVEN_B], one[stage, SEVEN_B]
            assert row.gpu_hours == pytest.approx(4 * row.job_seconds / 3600)
            assert alone.job_seconds / 4 < row.job_seconds < alone.job_seconds
    evaluations = [rows["evaluate", SEVEN_B].largest for rows in (one, ddp, fsdp)]
    assert len({cost.peak.weights for cost in evaluations}) == 1
    assert [cost.gpus for cost in evaluations] == [1, 4, 4]
    with_vllm = rows_with("jobs.gpus=2", "jobs.distributed=ddp", "evaluation.sampler=vllm")
    expected = {"measure_speed": 1, "sft": 2, "train": 2, "evaluate": 1}
    assert {stage: row.largest.gpus for (stage, _), row in with_vllm.items()} == expected


def test_processes_on_a_cpu_share_the_threads_and_need_memory_each(monkeypatch):
    changes = ["jobs.threads=2", "sft.per_device_train_batch_size=2", "training.per_device_train_batch_size=2"]
    processes = ["jobs.distributed=ddp", "jobs.num_processes=2"]
    studies = [read_study(ROOT / "config/smoke.yaml", [*changes, *added]) for added in ([], processes)]
    one, two = (Planner(study, cards_of(study, [])) for study in studies)
    path = next(path for path in job_paths(SMOKE) if path.startswith("train"))
    assert two.cards["tiny-28"].flops["float32"] == one.cards["tiny-28"].flops["float32"] / 2
    monkeypatch.setattr(cluster, "LEAST_MB", 0)  # the embedded models need less
    assert requested(two, path, 1)[0] > 1.5 * requested(one, path, 1)[0]


def test_the_number_of_gpus_that_is_said_to_fit_is_accepted_and_fits():
    """The batch of a warm-up of the paper is divided by two processes and not by four."""
    planner = Planner(PAPER, cards_of(PAPER, ["a100-80gb"]))
    row = next(row for row in planner.rows() if (row.stage, row.model) == ("train", SEVEN_B))
    remedy = next(remedy for remedy in planner.fitting(row) if "fsdp" in remedy)
    jobs, smaller = remedy.partition(" (")[0].split(" and ")
    assert (jobs, smaller) == (
        f"jobs.models.{SEVEN_B}: {{gpus: 4, distributed: fsdp}}",
        "sft.per_device_train_batch_size: 4",
    )
    changes = [f"jobs.models={{{jobs.removeprefix('jobs.models.')}}}", smaller.replace(": ", "=")]
    changed = read_study(ROOT / "config/paper.yaml", changes)
    rows = Planner(changed, cards_of(changed, ["a100-80gb"])).rows()
    fitted = next(row for row in rows if (row.stage, row.model) == ("train", SEVEN_B))
    assert fitted.fits and fitted.largest.gpus == 4


def test_a_saving_of_hours_is_the_difference_of_two_plans():
    cards = cards_of(PAPER, ["a100-80gb"])
    hours = {}
    for dtype in ("null", "bfloat16"):
        study = read_study(ROOT / "config/paper.yaml", [f"training.sampling_dtype={dtype}"])
        plan = make_plan(study, cards)
        hours[dtype] = sum(row.gpu_hours for row in plan.rows if row.stage == "train")
        assert any("sampling_dtype" in saving for saving in plan.savings) == (dtype == "null")
    saved = next(saving for saving in make_plan(PAPER, cards).savings if "sampling_dtype" in saving)
    assert f"save {hours['null'] - hours['bfloat16']:,.0f} of {hours['null']:,.0f}" in saved


def test_a_smaller_batch_makes_an_evaluation_fit():
    study = read_study(ROOT / "config/paper.yaml", ["evaluation.batch_size=512"])
    plan = make_plan(study, cards_of(study, ["l40s"]))
    assert any("evaluation.batch_size: " in warning for warning in plan.warnings)


def test_an_unknown_model_is_left_out_of_the_sums():
    study = read_study(ROOT / "config/smoke.yaml", ["models={other: {path: nobody/nothing}}", "grid.model=[other]"])
    plan = make_plan(study, cards_of(study, []))
    assert "nobody/nothing" in plan.warnings[0]
    assert "unknown" in render(plan)


def test_a_card_of_one_model():
    cards = cards_of(PAPER, ["a100-80gb", f"{SEVEN_B}=h200"])
    assert [card.name for card in cards.values()] == ["a100-80gb", "h200"]
    assert [card.name for card in cards_of(SMOKE, []).values()] == ["cpu"]
    for wrong in ("h101", "Llama=h100"):
        with pytest.raises(UserError, match="choose one of"):
            cards_of(PAPER, [wrong])


def test_measurements_correct_the_time_of_their_phases():
    cards = cards_of(SMOKE, [])
    path = next(path for path in job_paths(SMOKE) if path.startswith("train"))
    plain = Planner(SMOKE, cards).cost(path)
    planner = Planner(SMOKE, cards, [ROOT / "docs/reports/benchmarks/train-tiny-28.json"])
    assert set(planner.factors) == {"generate", "update", "optimizer"}
    for phase, factor in planner.factors.items():
        assert planner.cost(path).seconds[phase] == pytest.approx(factor * plain.seconds[phase])
    assert planner.cost(path).seconds["start"] == plain.seconds["start"]


def test_a_file_without_measurements_is_refused(tmp_path):
    other = tmp_path / "other.json"
    other.write_text('{"bench": "eval"}')
    with pytest.raises(UserError, match="was not written by"):
        Planner(SMOKE, cards_of(SMOKE, []), [other])
    with pytest.raises(UserError, match="name one card"):
        Planner(PAPER, cards_of(PAPER, [f"{SEVEN_B}=h100"]), [other])


def test_requests_are_above_the_plan_and_grow():
    planner = Planner(PAPER, cards_of(PAPER, ["h100"]))
    path = next(path for path in job_paths(PAPER) if path.startswith("train") and SEVEN_B in path)
    (memory, minutes), (more, longer) = (requested(planner, path, attempt) for attempt in (1, 2))
    assert more > memory and longer > minutes
    assert 60 * minutes > planner.cost(path).wall_seconds
    assert memory * 1e6 > 4 * planner.cost(path).parameters  # the weights pass through the memory of the node
    small = Planner(SMOKE, cards_of(SMOKE, []))
    for path in job_paths(SMOKE):
        memory, minutes = requested(small, path, 1)
        assert 1e6 * memory > small.cost(path).peak.total + GIB


def test_more_gpus_at_once_take_less_time_and_more_disk():
    one, eight = (make_plan(PAPER, cards_of(PAPER, ["h100"]), at_once=number) for number in (1, 8))
    assert elapsed_seconds(eight) == pytest.approx(elapsed_seconds(one) / 8)
    assert eight.disk > one.disk
    assert elapsed_seconds(eight._replace(at_once=10**6)) > 3600  # the longest chain of stages


def test_the_figure_has_a_bar_for_each_row():
    plan = make_plan(PAPER, cards_of(PAPER, ["h100"]))
    labels = [label.get_text() for label in hours_figure(plan).axes[0].get_yticklabels()]
    assert len(labels) == len(plan.rows)
