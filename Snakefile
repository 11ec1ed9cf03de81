# Nested-ReFT: the study on one page.
#
#   snakemake --cores all                                     run the embedded study: CPU, no network
#   snakemake --cores all --configfile config/paper.yaml      run the study of arXiv 2508.10123
#   snakemake --workflow-profile slurm                        run it on a cluster with Slurm
#   snakemake --report all.html --report-stylesheet workflow/report.css
#                                                             Snakemake's own report: also run times and the rules
#
# Each product has a path that names its place in the grid:
#   results/<study>/data/                                     training sets, benchmarks
#   results/<study>/pretrained/model~M/                       the path of a pretrained model
#   results/<study>/measure_speed/model~M/                    the speed of its roll-outs at each skip ratio
#   results/<study>/sft/model~M/dataset~D/seed~S/             an SFT warm-up, shared by all runs with this M, D and S
#   results/<study>/train/model~M/dataset~D/skip_ratio~X/border~B/mitigation~H/seed~S/
#   results/<study>/evaluate/<one of the three above>/        all benchmarks of one model
#   reports/<study>/                                          tables and figures

from snakemake.utils import min_version

min_version("9.27")


# One file describes a study completely: another --configfile replaces this one and is not merged into it.
if not workflow.overwrite_configfiles:

    configfile: "config/config.yaml"


# The files are included in the order in which their rules run.
include: "workflow/rules/common.smk"
include: "workflow/rules/cluster.smk"
include: "workflow/rules/tracking.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/measure_speed.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/analyse.smk"


rule all:
    default_target: True
    input:
        rules.analyse.output,
    message:
        "Completing the study"


onstart:
    check_before_jobs()


onsuccess:
    logger.info(summary())


onerror:
    end_unfinished()
