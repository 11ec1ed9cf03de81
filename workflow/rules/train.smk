"""The two training stages.

REQUIRED INPUTS: a model, a prepared training set
OUTPUTS:         results/<study>/sft/...: the warm-up of a (model, dataset, seed)
                 results/<study>/train/...: a run of the grid, started from its warm-up
STEPS:           SFT on chains of thought, then GRPO with roll-outs from the nested model.
                 Checkpoints lie in checkpoints/ beside the outputs and are not declared: Snakemake
                 deletes declared outputs of a failed job. A job that is started again resumes.
"""


rule sft:
    input:
        model=f"{RESULTS}/pretrained/model~{{model}}/model.json",
        data=f"{RESULTS}/data/dataset~{{dataset}}/train.jsonl",
        tracking=ancient(rules.tracking_store.output.store),
    output:
        model=directory(f"{RESULTS}/sft/{WARMUPS.wildcard_pattern}/model"),
        run=f"{RESULTS}/sft/{WARMUPS.wildcard_pattern}/run.json",
        metrics=f"{RESULTS}/sft/{WARMUPS.wildcard_pattern}/metrics.json",
        steps=f"{RESULTS}/sft/{WARMUPS.wildcard_pattern}/metrics.jsonl",
    log:
        f"logs/{STUDY.study}/sft/{WARMUPS.wildcard_pattern}.log",
    benchmark:
        f"benchmarks/{STUDY.study}/sft/{WARMUPS.wildcard_pattern}.tsv"
    conda:
        "../../environment.yml"
    threads: STUDY.jobs.threads
    resources:
        gpu=STUDY.jobs.gpus,
    params:
        settings=sft_settings,
        out=subpath(output.run, parent=True),
    message:
        "Warming up {wildcards.model} on {wildcards.dataset}, seed {wildcards.seed}"
    shell:
        "nested-reft sft"
        " --settings {params.settings:q}"
        " --model {input.model:q}"
        " --data {input.data:q}"
        " --tracking {input.tracking:q}"
        " --out {params.out:q}"
        " > {log:q} 2>&1"


rule train:
    input:
        model=f"{RESULTS}/sft/{WARMUPS.wildcard_pattern}/model",
        data=f"{RESULTS}/data/dataset~{{dataset}}/train.jsonl",
        tracking=ancient(rules.tracking_store.output.store),
    output:
        model=directory(f"{RESULTS}/train/{RUNS.wildcard_pattern}/model"),
        run=f"{RESULTS}/train/{RUNS.wildcard_pattern}/run.json",
        metrics=f"{RESULTS}/train/{RUNS.wildcard_pattern}/metrics.json",
        steps=f"{RESULTS}/train/{RUNS.wildcard_pattern}/metrics.jsonl",
        masks=f"{RESULTS}/train/{RUNS.wildcard_pattern}/skipped_layers.jsonl",
    log:
        f"logs/{STUDY.study}/train/{RUNS.wildcard_pattern}.log",
    benchmark:
        f"benchmarks/{STUDY.study}/train/{RUNS.wildcard_pattern}.tsv"
    conda:
        "../../environment.yml"
    threads: STUDY.jobs.threads
    resources:
        gpu=STUDY.jobs.gpus,
    params:
        settings=train_settings,
        out=subpath(output.run, parent=True),
    message:
        "Training {wildcards.model} on {wildcards.dataset}: skip ratio {wildcards.skip_ratio},"
        " {wildcards.mitigation}, seed {wildcards.seed}"
    shell:
        "nested-reft train"
        " --settings {params.settings:q}"
        " --model {input.model:q}"
        " --data {input.data:q}"
        " --tracking {input.tracking:q}"
        " --out {params.out:q}"
        " > {log:q} 2>&1"
