"""The command `power`: what a study can find out, before it runs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from nested_reft.cli.bench import check_folder
from nested_reft.errors import UserError


def numbers(option: str, text: str, smallest: float = 0.0) -> list[float]:
    """Return comma-separated numbers.

    Raises:
        UserError: one is not a number, or is too small.
    """
    try:
        found = [float(number) for number in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(smallest <= number < float("inf") for number in found):
        raise UserError(f"{option} is {text!r}; give numbers of {smallest:g} or more, separated by commas")
    return found


def one_for_each(option: str, text: str, sizes: tuple[int, ...]) -> list[float]:
    """Return standard deviations in points: one for all benchmarks, or one for each.

    Raises:
        UserError: the text has another number of them.
    """
    found = numbers(option, text)
    if len(found) not in (1, len(sizes)):
        raise UserError(
            f"{option} has {len(found)} numbers, and --problems names {len(sizes)} benchmarks; give one number, or "
            "one for each benchmark"
        )
    return found


def power(
    report: Annotated[
        Path | None,
        typer.Option(
            "--from", exists=True, file_okay=False, help="Report of a finished study: its variances, design and times."
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds; by default those of the study, or 3.")] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Completions per problem; by default those of the study, or 1.")
    ] = None,
    problems: Annotated[
        str | None,
        typer.Option(help="Problems of each benchmark, such as 30,83,500; by default those of the study."),
    ] = None,
    instances: Annotated[
        int | None,
        typer.Option(min=1, help="Instances of a cell, without the baseline; by default those of the study, or 9."),
    ] = None,
    seed_sd: Annotated[
        float | None,
        typer.Option(min=0, help="Without a study: standard deviation between seeds of the mean delta, in points."),
    ] = None,
    problem_sd: Annotated[
        str | None,
        typer.Option(
            help="Without a study: standard deviation between problems of a delta without sampling noise, in points; "
            "one for each benchmark, or one for all."
        ),
    ] = None,
    sample_sd: Annotated[
        str | None,
        typer.Option(
            help="Without a study: standard deviation of the difference of two answers to a problem, in points; "
            "one for each benchmark, or one for all."
        ),
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(min=0.5, max=0.999, help="Confidence level; by default that of the study, or 0.95.")
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(min=0.01, max=100, help="analysis.margin in points; by default that of the study, or 1."),
    ] = None,
    budget: Annotated[
        float | None, typer.Option(min=0, help="Hours for all runs of a cell; by default those of the study.")
    ] = None,
    training_seconds: Annotated[
        float | None, typer.Option(min=0, help="Seconds of a training; by default those of the study.")
    ] = None,
    answer_seconds: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds in which one sample of one problem is evaluated; by default the study's."),
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(
            callback=check_folder,
            help="Draw the power against the true delta: a path, of which SVG and PNG are written.",
        ),
    ] = None,
) -> None:
    """Compute what a study can find out before it runs: the smallest delta, the seeds for a margin, the best budget.

    The variances come from a finished study (`--from`), or from standard deviations in percentage points.
    """
    import numpy as np

    from nested_reft.config.sections import Analysis
    from nested_reft.plan import power_text
    from nested_reft.plan.power import Costs, Design, Pilot, alike, read_study

    sizes = None if problems is None else tuple(int(size) for size in numbers("--problems", problems, 2))
    costs: Costs | None
    if report is not None:
        if any(given is not None for given in (seed_sd, problem_sd, sample_sd)):
            raise UserError(
                f"--from {report} has the variances of a study; leave out --seed-sd, --problem-sd and --sample-sd"
            )
        pilot, design, costs = read_study(report)
        if sizes is not None:
            pilot, design = pilot if len(sizes) == len(design.sizes) else alike(pilot), design._replace(sizes=sizes)
    else:
        if sizes is None or (problem_sd is None and sample_sd is None):
            raise UserError(
                "the variances are missing; give the report of a finished study with --from, or --problems and "
                "--sample-sd, --problem-sd or both"
            )
        problem, sampling = (
            (np.array(one_for_each(option, text or "0", sizes)) / 100) ** 2
            for option, text in (("--problem-sd", problem_sd), ("--sample-sd", sample_sd))
        )
        seed = float("nan") if seed_sd is None else (seed_sd / 100) ** 2
        pilot = Pilot(seed, problem, np.zeros(1), sampling, "the options")
        design = Design(3, 1, sizes, 9, Analysis().confidence, Analysis().margin / 100)
        costs = None
    changes: dict[str, Any] = {"seeds": seeds, "samples": samples, "instances": instances, "confidence": confidence}
    design = design._replace(**{name: value for name, value in changes.items() if value is not None})
    if margin is not None:
        design = design._replace(margin=margin / 100)
    if training_seconds is not None and answer_seconds is not None:
        costs = Costs(training_seconds, answer_seconds)
    elif costs is not None:
        costs = Costs(
            costs.training if training_seconds is None else training_seconds,
            costs.answer if answer_seconds is None else answer_seconds,
        )
    elif budget is not None:
        raise UserError(
            f"--budget is {budget:g}, but the costs are unknown; give --training-seconds and --answer-seconds"
        )
    if np.isnan(pilot.seed) and design.seeds > 1:
        raise UserError(
            f"{design.seeds} seeds cannot be planned, because the variance between seeds is unknown; give --seed-sd "
            "or a study with two or more seeds, or plan --seeds 1"
        )
    typer.echo(power_text.render(pilot, design, costs, None if budget is None else 3600 * budget))
    if figure is not None:
        from nested_reft.report import style

        style.save(power_text.power_figure(pilot, design), figure.with_suffix(""))
