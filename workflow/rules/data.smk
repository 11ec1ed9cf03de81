"""Everything that may need a network.

REQUIRED INPUTS: models, datasets and benchmarks of the config: hub names, local paths, embedded ones
OUTPUTS:         results/<study>/pretrained/model~M/model.json: where the model is, its depth and width
                 results/<study>/data/benchmarks.jsonl: all benchmarks
                 results/<study>/data/dataset~D/train.jsonl: a training set, its manifest, and what was dropped
STEPS:           fetch or generate, bring into one format, drop what a benchmark holds, checksum.
"""


rule prepare_model:
    output:
        f"{RESULTS}/pretrained/model~{{model}}/model.json",
    log:
        f"logs/{STUDY.study}/prepare_model/model~{{model}}.log",
    benchmark:
        f"benchmarks/{STUDY.study}/prepare_model/model~{{model}}.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        settings=model_settings,
    message:
        "Fetching the model {wildcards.model}"
    shell:
        "nested-reft prepare model"
        " --settings {params.settings:q}"
        " --out {output:q}"
        " > {log:q} 2>&1"


rule prepare_benchmarks:
    output:
        rows=f"{RESULTS}/data/benchmarks.jsonl",
        manifest=f"{RESULTS}/data/benchmarks.manifest.json",
    log:
        f"logs/{STUDY.study}/prepare_benchmarks.log",
    benchmark:
        f"benchmarks/{STUDY.study}/prepare_benchmarks.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        settings=canonical({"benchmarks": STUDY.benchmarks}),
    message:
        "Preparing the benchmarks"
    shell:
        "nested-reft prepare benchmarks"
        " --settings {params.settings:q}"
        " --out {output.rows:q}"
        " > {log:q} 2>&1"


rule prepare_dataset:
    input:
        benchmarks=rules.prepare_benchmarks.output.rows,
    output:
        rows=f"{RESULTS}/data/dataset~{{dataset}}/train.jsonl",
        dropped=f"{RESULTS}/data/dataset~{{dataset}}/train.dropped.jsonl",
        manifest=f"{RESULTS}/data/dataset~{{dataset}}/train.manifest.json",
    log:
        f"logs/{STUDY.study}/prepare_dataset/dataset~{{dataset}}.log",
    benchmark:
        f"benchmarks/{STUDY.study}/prepare_dataset/dataset~{{dataset}}.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        settings=dataset_settings,
    message:
        "Preparing the training set {wildcards.dataset}"
    shell:
        "nested-reft prepare dataset"
        " --settings {params.settings:q}"
        " --benchmarks {input.benchmarks:q}"
        " --out {output.rows:q}"
        " > {log:q} 2>&1"
