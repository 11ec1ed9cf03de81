"""The study: the shipped configs, and the grid that each expands to."""

from collections import Counter

import pytest
import yaml

from nested_reft.config.parse import canonical, parse_settings
from nested_reft.config.sections import Grid
from nested_reft.config.study import RUN, Run, Study, expand_grid
from nested_reft.errors import UserError
from tests.config.studies import CONFIGS, changed, load


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configs_are_valid(path):
    parse_settings(Study, yaml.safe_load(path.read_text()))


def test_paper_study_is_the_defaults_and_sixty_runs():
    written = load("paper.yaml")
    study = parse_settings(Study, written)
    assert len(expand_grid(study)) == 60
    assert sum(run.skip_ratio == 0 for run in expand_grid(study)) == 6
    needed = {name: written[name] for name in ("study", "models", "datasets", "benchmarks", "grid")}
    assert parse_settings(Study, needed) == study
    # TRL's defaults change between versions, so each key of these sections is written out
    for section in ("decontamination", "sft", "training", "evaluation"):
        assert set(written[section]) == set(type(getattr(study, section)).model_fields)


@pytest.mark.parametrize(
    "path", [path for path in CONFIGS if path.name.startswith("paper-")], ids=lambda path: path.name
)
def test_adapted_studies_of_the_paper_have_its_runs_data_and_evaluation(path):
    paper, adapted = (parse_settings(Study, load(name)) for name in ("paper.yaml", path.name))
    assert expand_grid(adapted) == expand_grid(paper)
    assert adapted.study == path.stem
    for section in ("models", "datasets", "benchmarks", "prompt", "nesting", "evaluation", "decontamination"):
        assert getattr(adapted, section) == getattr(paper, section)


def test_embedded_study_is_ten_runs():
    study = parse_settings(Study, load("config.yaml"))
    assert [(run.skip_ratio, run.mitigation) for run in expand_grid(study)][:2] == [(0.0, "base"), (0.05, "base")]
    assert len({canonical(run) for run in expand_grid(study)}) == 10


def test_each_border_adds_its_instances_and_shares_the_baseline():
    runs = expand_grid(parse_settings(Study, changed("grid.border", [1, 3])))
    assert [(run.skip_ratio, run.border, run.mitigation) for run in runs][:2] == [(0.0, 0, "base"), (0.05, 1, "base")]
    assert Counter(run.border for run in runs) == {0: 1, 1: 9, 3: 9}


def test_every_axis_of_the_grid_is_an_axis_of_a_run():
    assert set(RUN) == set(Grid.model_fields) == set(Run.model_fields)


def test_a_model_can_have_processes_of_its_own():
    jobs = changed("jobs", {"gpus": 1, "models": {"tiny-28": {"gpus": 4, "distributed": "ddp"}}})
    for section in ("sft", "training"):
        jobs[section]["per_device_train_batch_size"] = 2
    study = parse_settings(Study, jobs)
    assert study.jobs.processes("tiny-28").count == 4 and study.jobs.most_gpus(["tiny-28"]) == 4
    assert study.jobs.processes("another").count == 1 and study.jobs.most_gpus(["another"]) == 1
    on_cpu = parse_settings(Study, jobs | {"jobs": {"gpus": 0, "distributed": "ddp", "num_processes": 2}})
    assert on_cpu.jobs.processes("tiny-28").count == 2


@pytest.mark.parametrize(
    ("jobs", "words"),
    [
        ({"gpus": 2}, "config key `jobs` has gpus 2 with distributed none, which is one process"),
        ({"gpus": 0, "num_processes": 2}, "has num_processes 2 with distributed none"),
        ({"distributed": "ddp"}, "has distributed ddp with one process, which has nothing to divide"),
        (
            {"gpus": 2, "distributed": "ddp", "num_processes": 4},
            "has num_processes 4 with gpus 2, but a process has one",
        ),
        ({"models": {"tiny-28": {"gpus": 2}}}, "has gpus 2 with distributed none for model tiny-28"),
        (
            {"models": {"tiny-82": {"gpus": 1}}},
            "has jobs.models.tiny-82, but no model of this name; choose one of tiny-28",
        ),
        ({"gpus": 64, "distributed": "ddp"}, "has a section sft that has batch_size .*, which 64 processes with"),
    ],
)
def test_processes_that_do_not_fit_are_refused(jobs, words):
    with pytest.raises(UserError, match=words):
        parse_settings(Study, changed("jobs", jobs))
