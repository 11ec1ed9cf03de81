"""The two training stages.

REQUIRED INPUTS: a model, a prepared training set
OUTPUTS:         results/<study>/sft/...: the warm-up of a (model, dataset, seed)
                 results/<study>/train/...: a run of the grid, which starts from the warm-up, from a checkpoint
                 of the user, or from the pretrained model
STEPS:           SFT on chains of thought; then GRPO with roll-outs from the nested model. A job that is
                 started again resumes from checkpoints/ beside its outputs. The checkpoints are not declared
                 as outputs, because Snakemake deletes the declared outputs of a failed job.
"""


rule sft:
    input:
        model=f"{RESULTS}/{layout.PRETRAINED}/model.json",
        data=f"{RESULTS}/{layout.DATASET}",
        tracking=ancient(rules.tracking_store.output.store),
    output:
        model=kept(directory(f"{RESULTS}/{layout.SFT}/model")),
        run=f"{RESULTS}/{layout.SFT}/run.json",
        metrics=f"{RESULTS}/{layout.SFT}/metrics.json",
        steps=f"{RESULTS}/{layout.SFT}/metrics.jsonl",
    log:
        f"{LOGS}/{layout.SFT}.log",
    benchmark:
        f"{TIMES}/{layout.SFT}.tsv"
    threads: STUDY.jobs.threads
    resources:
        gpu=num_gpus,
        num_processes=num_processes,
        distributed=distributed,
        mem_mb=job_memory(layout.SFT),
        runtime=job_minutes(layout.SFT),
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
        " --distributed {resources.distributed}"
        " --num-processes {resources.num_processes}"
        " > {log:q} 2>&1"


rule train:
    input:
        model=get_start,
        data=f"{RESULTS}/{layout.DATASET}",
        # A training reruns when the code of the user's reward function changes.
        rewards=list(REWARD_FILES.values()),
        tracking=ancient(rules.tracking_store.output.store),
    output:
        model=kept(directory(f"{RESULTS}/{layout.TRAIN}/model")),
        run=f"{RESULTS}/{layout.TRAIN}/run.json",
        metrics=f"{RESULTS}/{layout.TRAIN}/metrics.json",
        steps=f"{RESULTS}/{layout.TRAIN}/metrics.jsonl",
        skipped=f"{RESULTS}/{layout.TRAIN}/skipped_layers.jsonl",
    log:
        f"{LOGS}/{layout.TRAIN}.log",
    benchmark:
        f"{TIMES}/{layout.TRAIN}.tsv"
    threads: STUDY.jobs.threads
    resources:
        gpu=num_gpus,
        num_processes=num_processes,
        distributed=distributed,
        mem_mb=job_memory(layout.TRAIN),
        runtime=job_minutes(layout.TRAIN),
    params:
        settings=train_settings,
        out=subpath(output.run, parent=True),
    message:
        "Training {wildcards.model} on {wildcards.dataset}: skip ratio {wildcards.skip_ratio},"
        " border {wildcards.border}, {wildcards.mitigation}, seed {wildcards.seed}"
    shell:
        "nested-reft train"
        " --settings {params.settings:q}"
        " --model {input.model:q}"
        " --data {input.data:q}"
        " --tracking {input.tracking:q}"
        " --out {params.out:q}"
        " --distributed {resources.distributed}"
        " --num-processes {resources.num_processes}"
        " > {log:q} 2>&1"
