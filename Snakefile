# Nested-ReFT, the study on one page.
#
#   snakemake --cores all                                     the embedded study: CPU, no network
#   snakemake --cores all --configfile config/paper.yaml      the study of arXiv 2508.10123
#   snakemake --report report.html                            after either, with the same --configfile
#
# Files are named after what they belong to:
#   results/<study>/data/                                     training sets, benchmarks
#   results/<study>/pretrained/model~M/                       where the model is
#   results/<study>/sft/model~M/dataset~D/seed~S/             the warm-up, shared by ten runs
#   results/<study>/train/model~M/dataset~D/skip_ratio~X/mitigation~H/seed~S/
#   results/<study>/evaluate/<any of the three above>/        all benchmarks of one model
#   reports/<study>/                                          tables and figures

from snakemake.utils import min_version

min_version("9.27")


# A study is complete in one file: another --configfile replaces the default and is not merged into it.
if not workflow.overwrite_configfiles:

    configfile: "config/config.yaml"


# In the order in which they run.
include: "workflow/rules/common.smk"
include: "workflow/rules/tracking.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/analyse.smk"


rule all:
    default_target: True
    input:
        rules.analyse.output,
        # Not the report alone: that of the embedded study is in the repository, and comes with every clone.
        rules.analyse.input.runs,
        rules.analyse.input.evaluations,


onsuccess:
    print(summary())
