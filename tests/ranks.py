"""What each rank of the slow tests of several processes does: jobs one after the other, without new imports.

`torchrun --nproc-per-node 2 tests/ranks.py jobs.json` runs a list of jobs: the name of a stage and its arguments.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate.state import GradientState

from nested_reft import processes
from nested_reft.cli import stages
from nested_reft.errors import PreemptedError, UserError

processes.leave = torch.distributed.barrier  # the next job uses the connection of the ranks again
for job in json.loads(Path(sys.argv[1]).read_text()):
    stage, fails = job.pop("stage"), job.pop("fails", "")
    os.environ |= {"SEEN": f"seen-{Path(job['out']).name}", "PLANT": f"{job['out']}.plant"}
    os.environ["STOP"] = str(job.pop("stop", "never"))
    paths = {name: Path(value) for name, value in job.items() if name in ("model", "data", "benchmarks", "out")}
    try:
        getattr(stages, stage)(**job | paths)
    except (UserError, PreemptedError) as error:
        assert fails and fails in str(error), error
        GradientState._reset_state()  # the job has ended in the middle of a step; its process would end, too
        if processes.rank() == 0:
            Path(job["out"] + ".plant").unlink(missing_ok=True)
        torch.distributed.barrier()
    else:
        assert not fails
torch.distributed.destroy_process_group()
