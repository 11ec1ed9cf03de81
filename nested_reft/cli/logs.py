"""What the commands write to standard error, which the rules of the workflow redirect to the log file of a job."""

import logging
import os
import sys
import warnings

from nested_reft.processes import rank


def set_up_logging(verbose: bool) -> None:
    """Log messages of this package as one row each, and keep out what only developers of the libraries need.

    Without `verbose`, warnings about the future of the libraries are hidden, and only warnings of the libraries are
    logged. Where standard error is not a terminal, the libraries draw no progress bars, because a bar fills a log file
    with carriage returns.

    Of a job on several processes, only rank 0 logs how far it is. Warnings and errors of another rank name it.

    Args:
        verbose: whether to log details, too.
    """
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format=f"%(asctime)s %(levelname)s {f'rank {rank()}: ' if rank() else ''}%(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
    )
    level = logging.INFO if rank() == 0 else logging.WARNING
    logging.getLogger("nested_reft").setLevel(logging.DEBUG if verbose else level)
    logging.captureWarnings(rank() > 0)
    if not verbose:
        warnings.filterwarnings("ignore", category=FutureWarning)
        # Some file systems make this module warn that it sorts checkpoints by number, which is right in any case.
        logging.getLogger("transformers.trainer_utils").setLevel(logging.ERROR)
    if not sys.stderr.isatty():  # the libraries read these variables when they are imported
        for library in ("HF_HUB", "HF_DATASETS"):
            os.environ.setdefault(f"{library}_DISABLE_PROGRESS_BARS", "1")
