"""The speed of roll-outs.

REQUIRED INPUTS: a pretrained model, the prepared training sets of the study
OUTPUTS:         results/<study>/measure_speed/model~M/: the seconds of each roll-out in every round
STEPS:           time roll-outs at every skip ratio, one after the other, with the lengths and the batch of the
                 study. Trainings that share a machine slow each other down, so that their speeds cannot be compared.
                 This job claims all cores of the machine, beside which no other job starts. On a cluster, the profile
                 asks for a node of its own.
"""


rule measure_speed:
    input:
        model=f"{RESULTS}/{layout.PRETRAINED}/model.json",
        data=expand(f"{RESULTS}/{layout.DATASET}", dataset=STUDY.grid.dataset),
        tracking=ancient(rules.tracking_store.output.store),
    output:
        run=f"{RESULTS}/{layout.MEASURE_SPEED}/run.json",
        metrics=f"{RESULTS}/{layout.MEASURE_SPEED}/metrics.json",
        rounds=f"{RESULTS}/{layout.MEASURE_SPEED}/metrics.jsonl",
    log:
        f"{LOGS}/{layout.MEASURE_SPEED}.log",
    benchmark:
        f"{TIMES}/{layout.MEASURE_SPEED}.tsv"
    # Before the trainings start: later, all cores are idle only when the last of them has ended.
    priority: 2
    threads: whole_machine()
    resources:
        gpu=lambda wildcards: STUDY.processes("measure_speed", wildcards.model).gpus,
        num_threads=STUDY.jobs.threads,
        num_processes=num_processes,
        mem_mb=job_memory(layout.MEASURE_SPEED),
        runtime=job_minutes(layout.MEASURE_SPEED),
    params:
        settings=measure_speed_settings,
        data=lambda wildcards, input: [f"--data={path}" for path in input.data],
        out=subpath(output.run, parent=True),
    message:
        "Measuring the speed of {wildcards.model}"
    shell:
        "nested-reft measure-speed"
        " --settings {params.settings:q}"
        " --model {input.model:q}"
        " {params.data:q}"
        " --tracking {input.tracking:q}"
        " --out {params.out:q}"
        " --threads {resources.num_threads}"
        " --num-processes {resources.num_processes}"
        " > {log:q} 2>&1"
