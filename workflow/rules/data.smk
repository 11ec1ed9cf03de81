"""Models, training sets and benchmarks. Only these rules may need a network.

REQUIRED INPUTS: the models, datasets and benchmarks of the config: hub names, local paths or embedded ones
OUTPUTS:         results/<study>/pretrained/model~M/model.json: the path of the model, its depth and width; the model of
                 a GGUF file x.gguf is dequantised into the folder x beside the file
                 results/<study>/data/benchmarks.jsonl: all benchmarks, with a manifest
                 results/<study>/data/dataset~D/train.jsonl: a training set, with a manifest and the dropped
                 problems
STEPS:           fetch or generate; convert to one format; drop the training problems that a benchmark
                 contains; write checksums.
"""


rule prepare_model:
    input:
        get_gguf,
    output:
        f"{RESULTS}/{layout.PRETRAINED}/model.json",
    log:
        f"{LOGS}/prepare_model/model~{{model}}.log",
    benchmark:
        f"{TIMES}/prepare_model/model~{{model}}.tsv"
    localrule: True
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
        rows=f"{RESULTS}/{layout.BENCHMARKS}",
        manifest=f"{RESULTS}/data/benchmarks.manifest.json",
    log:
        f"{LOGS}/prepare_benchmarks.log",
    benchmark:
        f"{TIMES}/prepare_benchmarks.tsv"
    localrule: True
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
        rows=f"{RESULTS}/{layout.DATASET}",
        dropped=f"{RESULTS}/data/dataset~{{dataset}}/train.dropped.jsonl",
        manifest=f"{RESULTS}/data/dataset~{{dataset}}/train.manifest.json",
    log:
        f"{LOGS}/prepare_dataset/dataset~{{dataset}}.log",
    benchmark:
        f"{TIMES}/prepare_dataset/dataset~{{dataset}}.tsv"
    localrule: True
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
