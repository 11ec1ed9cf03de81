"""The benchmarks.

REQUIRED INPUTS: a model: pretrained, warmed up or trained; the prepared benchmarks
OUTPUTS:         results/<study>/evaluate/<product>/: accuracies, and a record of every problem
STEPS:           all benchmarks of a model in one job, because loading it is what costs.
"""


rule evaluate:
    input:
        model=get_model,
        benchmarks=rules.prepare_benchmarks.output.rows,
        tracking=ancient(rules.tracking_store.output.store),
    output:
        run=f"{RESULTS}/evaluate/{{product}}/run.json",
        metrics=f"{RESULTS}/evaluate/{{product}}/metrics.json",
        records=f"{RESULTS}/evaluate/{{product}}/records.parquet",
    log:
        f"logs/{STUDY.study}/evaluate/{{product}}.log",
    benchmark:
        f"benchmarks/{STUDY.study}/evaluate/{{product}}.tsv"
    conda:
        "../../environment.yml"
    threads: STUDY.jobs.threads
    resources:
        gpu=STUDY.jobs.gpus,
    params:
        settings=evaluate_settings,
        out=subpath(output.run, parent=True),
    message:
        "Evaluating {wildcards.product}"
    shell:
        "nested-reft evaluate"
        " --settings {params.settings:q}"
        " --model {input.model:q}"
        " --benchmarks {input.benchmarks:q}"
        " --tracking {input.tracking:q}"
        " --out {params.out:q}"
        " > {log:q} 2>&1"
