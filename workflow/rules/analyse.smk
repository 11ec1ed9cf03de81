"""Tables and figures.

REQUIRED INPUTS: the files of every run and of every evaluation
OUTPUTS:         reports/<study>/: five sources (results.csv, a row per evaluated model and benchmark;
                 problem_scores.parquet, a row per problem; steps.csv, a row per step; config.json;
                 provenance.json), and the tables, figures and captions. `nested-reft analyse --from
                 reports/<study>` rebuilds these from the sources alone.
STEPS:           read the files; compare each run with its baseline; write. The stage needs neither torch
                 nor TRL. The captions of the HTML report state numbers of the study, so they are outputs.
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
        table1=shown("table1.csv", "1 Setup", "Table 1: layers skipped"),
        stages=shown("stages.csv", "1 Setup", "Accuracy after each stage"),
        table2=shown("table2.csv", "2 Findings", "Table 2: best and worst delta"),
        table2_paper=shown(
            "table2_paper.csv", "2 Findings", "Table 2 of the paper itself"
        ),
        counts=shown("strategy_counts.csv", "2 Findings", "Strategy counts"),
        heat_map=shown("heat_map.svg", "2 Findings", "The whole grid at a glance"),
        frontier=shown("frontier.svg", "2 Findings", "Accuracy against speed"),
        figures=[
            shown(
                f"figure_{dataset}.svg",
                "3 Detail",
                f"Accuracy, token speed, run time: {dataset}",
                caption="figure",
            )
            for dataset in STUDY.grid.dataset
        ],
        deltas=shown("deltas.csv", "3 Detail", "All deltas"),
        mcnemar=shown("mcnemar.csv", "3 Detail", "McNemar's exact tests"),
        efficiency=shown("efficiency.csv", "3 Detail", "Efficiency of each instance"),
        speed_up=shown("speed_up.svg", "3 Detail", "Speed-up against its bounds"),
        time_split=shown("time_split.svg", "3 Detail", "Where the time goes"),
        off_policy=shown("off_policy.svg", "3 Detail", "Off-policyness"),
        reward=shown("reward.svg", "3 Detail", "Reward curves"),
        provenance=shown("provenance.csv", "4 Provenance", "Code, versions, hardware"),
        config=shown("config.csv", "4 Provenance", "Config against the paper's"),
        others=expand(
            f"{REPORTS}/{{table}}.{{suffix}}",
            table=layout.TABLES,
            suffix=["md", "tex"],
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
