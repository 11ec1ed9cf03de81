"""Tables and figures.

REQUIRED INPUTS: the files of every run and of every evaluation
OUTPUTS:         reports/<study>/: five sources (results.csv, a row per model evaluated and benchmark;
                 problem_scores.parquet, a row per problem; steps.csv; config.json; provenance.json), and the
                 tables, figures and captions that `nested-reft analyse --from reports/<study>` can
                 rebuild from them alone
STEPS:           read, compare with the baseline, write. Neither torch nor TRL is needed. The captions
                 of the HTML report state this study's numbers, so they are outputs too.
"""


rule analyse:
    input:
        models=expand(
            f"{RESULTS}/pretrained/model~{{model}}/model.json", model=STUDY.grid.model
        ),
        runs=expand(f"{RESULTS}/train/{{run}}/metrics.json", run=RUNS.instance_patterns),
        evaluations=expand(
            f"{RESULTS}/evaluate/{{product}}/metrics.json", product=PRODUCTS
        ),
        tracking=ancient(rules.tracking_store.output.store),
        # cheap enough to follow its code
        code=[
            f"{workflow.basedir}/nested_reft/report/{module}.py"
            for module in ("tables", "captions", "figures", "statistics")
        ],
    output:
        results=f"{REPORTS}/results.csv",
        sources=expand(
            f"{REPORTS}/{{source}}",
            source=[
                "problem_scores.parquet",
                "steps.csv",
                "config.json",
                "provenance.json",
            ],
        ),
        findings=f"{REPORTS}/findings.rst",
        captions=expand(f"{REPORTS}/caption_{{name}}.rst", name=CAPTIONS),
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
            f"{REPORTS}/{{table}}.{{suffix}}", table=TABLES, suffix=["md", "tex"]
        ),
        png=expand(f"{REPORTS}/{{figure}}.png", figure=FIGURES),
    log:
        f"logs/{STUDY.study}/analyse.log",
    benchmark:
        f"benchmarks/{STUDY.study}/analyse.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        settings=analyse_settings,
        results=subpath(input.tracking, parent=True),
        out=subpath(output.results, parent=True),
    message:
        "Writing tables and figures"
    shell:
        "nested-reft analyse"
        " --settings {params.settings:q}"
        " --results {params.results:q}"
        " --tracking {input.tracking:q}"
        " --out {params.out:q}"
        " > {log:q} 2>&1"
