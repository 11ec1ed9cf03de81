"""The benchmarks.

REQUIRED INPUTS: a model (pretrained, warmed up by SFT, or trained), the prepared benchmarks
OUTPUTS:         results/<study>/evaluate/<product>/: accuracies, and a record of every completion
STEPS:           evaluate one model on all benchmarks in one job, since model loading dominates.
"""


rule evaluate:
    input:
        model=get_model,
        benchmarks=rules.prepare_benchmarks.output.rows,
        tracking=ancient(rules.tracking_store.output.store),
    output:
        run=f"{RESULTS}/{layout.EVALUATE}/run.json",
        metrics=f"{RESULTS}/{layout.EVALUATE}/metrics.json",
        records=f"{RESULTS}/{layout.EVALUATE}/records.parquet",
    log:
        f"{LOGS}/{layout.EVALUATE}.log",
    benchmark:
        f"{TIMES}/{layout.EVALUATE}.tsv"
    # The model of a training is deleted after its evaluation, which therefore comes before further trainings.
    priority: 0 if STUDY.jobs.keep_models else 1
    threads: STUDY.jobs.threads
    resources:
        gpu=num_gpus,
        num_processes=num_processes,
        distributed=distributed,
        mem_mb=job_memory(layout.EVALUATE),
        runtime=job_minutes(layout.EVALUATE),
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
        " --distributed {resources.distributed}"
        " --num-processes {resources.num_processes}"
        " > {log:q} 2>&1"
