"""The command `init`, which begins a study of one's own."""

from typing import Annotated

import typer


def init(
    study: Annotated[str, typer.Argument(help="Name of the study, which names its files: config/<study>.yaml, ...")],
    model: Annotated[
        list[str],
        typer.Option(metavar="<model>", help="Folder of a model, embedded/<name>, or a name on the Hugging Face hub."),
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="<data>",
            help="Training set: a file of JSON lines, a folder of a dataset, embedded/<name>, or a name on the hub.",
        ),
    ],
    benchmark: Annotated[
        list[str] | None,
        typer.Option(
            metavar="<data>",
            help="Problems to evaluate on. The option can be repeated. Without it, some problems of the training set "
            "are held out.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the files of the study if they exist.")] = False,
) -> None:
    """Write the YAML file of a new study, with settings for this machine, the model and the data; then check it."""
    import torch

    from nested_reft.cli.run import check
    from nested_reft.study.init import plan_study, write_study

    plan = plan_study(study, model, data, benchmark or [], torch.cuda.is_available())
    write_study(plan, replace=force)
    typer.echo("\n".join(plan.findings))
    typer.echo(f"\nWrote {plan.path}.")
    try:
        check(plan.path)
    except typer.Exit:
        remedy = f"Remove the cause, then run `nested-reft check {plan.path}`."
        typer.echo(f"{plan.path} is written all the same. {remedy}", err=True)
        raise
    typer.echo(
        f"\nRead {plan.path}, and change what you like. Then:\n"
        f"  nested-reft check {plan.path}    look for mistakes\n"
        f"  nested-reft run {plan.path}      run the study, or go on after a stop\n"
        f"  nested-reft status {plan.path}   see what is done\n"
        f"  nested-reft report {plan.path}   write report.html"
    )
