"""Which study a report is about: one that the user names, or the one that was run last."""

from pathlib import Path

from nested_reft.config.layout import LOGS, REPORTS, RESULTS
from nested_reft.config.study_file import read_mapping, read_study
from nested_reft.errors import UserError
from nested_reft.report.collect import collect
from nested_reft.report.sources import Sources, read_sources


def newest_study() -> Path:
    """Return what is known of the study that was run last in this folder: its report, or its configuration in config/.

    Raises:
        UserError: if no study has been run, or if no configuration names it.
    """
    made = dict.fromkeys(Path().glob(REPORTS.format(study="*/provenance.json")), REPORTS)
    made |= dict.fromkeys(Path().glob(RESULTS.format(study="*/**/metrics.json")), RESULTS)
    if not made:
        raise UserError("there is neither a report in reports/ nor a result in results/; run a study first")
    newest = max(made, key=lambda path: path.stat().st_mtime)
    study = newest.parts[1]
    if made[newest] == REPORTS:
        return newest.parent
    for file in sorted(Path("config").glob("*.yaml")):
        if read_mapping(file).get("study") == study:
            return file
    raise UserError(f"no file config/*.yaml describes the study {study!r}, which was run last; name its YAML file")


def find_sources(study: Path) -> Sources:
    """Return the sources of a report.

    Args:
        study: the folder of a report, or the YAML file of a study, whose results are collected as far as they exist.

    Raises:
        UserError: if the file or the folder does not describe a study, or if no run of the study is finished.
    """
    if study.is_dir():
        return read_sources(study)
    parsed = read_study(study)
    return collect(parsed, *(Path(folder.format(study=parsed.study)) for folder in (RESULTS, LOGS)))
