"""The MLflow store.

REQUIRED INPUTS: none
OUTPUTS:         results/<study>/tracking.json: the address of the store
STEPS:           create the store and the study's experiment, once, before jobs track into it together.
                 All other rules take the note as ancient(): a new address reruns nothing.
"""


rule tracking_store:
    output:
        store=f"{RESULTS}/tracking.json",
    log:
        f"logs/{STUDY.study}/tracking_store.log",
    benchmark:
        f"benchmarks/{STUDY.study}/tracking_store.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        uri=os.environ.get("MLFLOW_TRACKING_URI") or STUDY.tracking.uri or "",
        study=STUDY.study,
    message:
        "Creating the MLflow store"
    shell:
        "nested-reft tracking-store"
        " --uri {params.uri:q}"
        " --study {params.study:q}"
        " --out {output.store:q}"
        " > {log:q} 2>&1"
