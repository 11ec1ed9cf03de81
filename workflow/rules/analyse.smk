"""Tables and figures.

REQUIRED INPUTS: the files of every run and of every evaluation
OUTPUTS:         reports/<study>/: results.csv (one row per run and benchmark), Tables 1 and 2, strategy
                 counts, deltas, a figure per dataset, the time split, the reward curves
STEPS:           read, compare with the baseline, write. Neither torch nor TRL is needed.
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
            f"{workflow.basedir}/nested_reft/{module}.py"
            for module in ("analysis", "plots")
        ],
    output:
        results=f"{REPORTS}/results.csv",
        config=f"{REPORTS}/config.json",
        provenance=f"{REPORTS}/provenance.json",
        deltas=f"{REPORTS}/deltas.csv",
        steps=f"{REPORTS}/steps.csv",
        stages=report(
            f"{REPORTS}/stages.csv",
            caption="../report/stages.rst",
            category="Results",
            labels={"what": "Accuracy after each stage"},
        ),
        table1=report(
            f"{REPORTS}/table1.csv",
            caption="../report/table1.rst",
            category="Setup",
            labels={"what": "Table 1: layers skipped"},
        ),
        table2=report(
            f"{REPORTS}/table2.csv",
            caption="../report/table2.rst",
            category="Results",
            labels={"what": "Table 2: best and worst delta"},
        ),
        counts=report(
            f"{REPORTS}/strategy_counts.csv",
            caption="../report/strategy_counts.rst",
            category="Results",
            labels={"what": "Strategy counts"},
        ),
        figures=report(
            expand(f"{REPORTS}/figure_{{dataset}}.svg", dataset=STUDY.grid.dataset),
            caption="../report/figure.rst",
            category="Figures",
            labels={"what": "Accuracy, token speed, run time"},
        ),
        time_split=report(
            f"{REPORTS}/time_split.svg",
            caption="../report/time_split.rst",
            category="Figures",
            labels={"what": "Where the time goes"},
        ),
        reward=report(
            f"{REPORTS}/reward.svg",
            caption="../report/reward.rst",
            category="Figures",
            labels={"what": "Reward curves"},
        ),
        markdown=expand(
            f"{REPORTS}/{{table}}.md",
            table=["stages", "table1", "table2", "strategy_counts"],
        ),
        png=expand(
            f"{REPORTS}/{{figure}}.png",
            figure=[
                *(f"figure_{dataset}" for dataset in STUDY.grid.dataset),
                "time_split",
                "reward",
            ],
        ),
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
