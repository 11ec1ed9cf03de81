"""Tables and figures.

REQUIRED INPUTS: the files of every run and of every evaluation
OUTPUTS:         reports/<study>/: five sources (results.csv, a row per evaluated model and benchmark;
                 problem_scores.parquet, a row per problem; steps.csv, a row per step; config.json;
                 provenance.json), the tables, figures and captions, and report.html, which shows
                 all of them. `nested-reft analyse --from reports/<study>` rebuilds these from
                 the sources alone.
STEPS:           read the files; compare each run with its baseline; write. The stage needs neither torch
                 nor TRL. The captions of Snakemake's report state numbers of the study, so they are outputs.
"""


rule analyse:
    input:
        models=expand(
            f"{RESULTS}/{layout.PRETRAINED}/model.json", model=STUDY.grid.model
        ),
        runs=[
            f"{RESULTS}/{path}/metrics.json"
            for path, axes in PRODUCTS.items()
            if axes["product"] == "train"
        ],
        speeds=(
            expand(
                f"{RESULTS}/{layout.MEASURE_SPEED}/metrics.json",
                model=STUDY.grid.model,
            )
            if STUDY.analysis.speed_rounds
            else []
        ),
        evaluations=expand(
            f"{RESULTS}/{layout.EVALUATE}/metrics.json", product=PRODUCTS
        ),
        tracking=ancient(rules.tracking_store.output.store),
        # The stage takes seconds, so it reruns when its code changes: the report and all modules it imports.
        code=source_files("report"),
    output:
        sources=expand(
            f"{REPORTS}/{{source}}", source=[*layout.SOURCES, *layout.DETAILS]
        ),
        findings=f"{REPORTS}/findings.rst",
        captions=expand(f"{REPORTS}/caption_{{name}}.rst", name=layout.CAPTIONS),
        shown=[
            shown(place, *entry)
            for place, entry in enumerate(contents(STUDY.grid.dataset), start=1)
        ],
        page=f"{REPORTS}/{layout.PAGE}",
        others=expand(
            f"{REPORTS}/{{table}}.{{suffix}}",
            table=layout.TABLES,
            suffix=["csv", "md", "tex"],
        ),
        png=expand(f"{REPORTS}/{{figure}}.png", figure=FIGURES),
    log:
        f"{LOGS}/analyse.log",
    benchmark:
        f"{TIMES}/analyse.tsv"
    localrule: True
    params:
        settings=analyse_settings,
        results=subpath(input.tracking, parent=True),
        out=subpath(output.findings, parent=True),
    message:
        "Writing tables and figures"
    shell:
        "nested-reft analyse"
        " --settings {params.settings:q}"
        " --results {params.results:q}"
        " --tracking {input.tracking:q}"
        " --out {params.out:q}"
        " > {log:q} 2>&1"
