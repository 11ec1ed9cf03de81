"""The MLflow store.

REQUIRED INPUTS: none
OUTPUTS:         results/<study>/tracking.json: a note with the address of the store
STEPS:           create the store and the experiment of the study once, before jobs write to it at the same
                 time. All other rules read the note as ancient(), so that a new address reruns nothing.
"""


rule tracking_store:
    output:
        store=f"{RESULTS}/tracking.json",
    log:
        f"{LOGS}/tracking_store.log",
    benchmark:
        f"{TIMES}/tracking_store.tsv"
    localrule: True
    params:
        uri=tracking_uri(STUDY.tracking.uri) or "",
        study=STUDY.study,
        report_to=[f"--report-to={name}" for name in STUDY.tracking.report_to],
    message:
        "Creating the MLflow store"
    shell:
        "nested-reft tracking-store"
        " --uri={params.uri:q}"
        " --study {params.study:q}"
        " {params.report_to:q}"
        " --out {output.store:q}"
        " > {log:q} 2>&1"
