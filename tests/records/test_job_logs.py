"""The sentence of a failed job's log."""

import pytest

from nested_reft.records.job_logs import INTERRUPTED, NO_LOG, NO_MESSAGE, TAIL_BYTES, last_sentence

STEP = "2026-11-27 06:37:52 INFO step 1/3: reward 0.5\n"
CHAINED = """Traceback (most recent call last):
  File "a.py", line 1, in <module>
KeyError: 'problem'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "b.py", line 1, in <module>
    raise RuntimeError
RuntimeError: no space left on device
in the second line of the message
"""


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (STEP + "Error: the model has no tokenizer\n", "the model has no tokenizer"),
        ("Error: the first\n" + STEP + "Error: the last\n", "the last"),
        (CHAINED + "Error: the disk is full\n", "the disk is full"),
        (STEP + CHAINED, "RuntimeError: no space left on device"),
        (STEP + "\nAborted!\n", INTERRUPTED),
        (STEP + "Traceback (most recent call last):\n  File\nKeyboardInterrupt\n", INTERRUPTED),
        (STEP, NO_MESSAGE),
        (STEP + "Traceback (most recent call last):\n  File", NO_MESSAGE),
        ("", NO_MESSAGE),
        ("x" * 2 * TAIL_BYTES + "\nError: at the end of a long log\n", "at the end of a long log"),
        ("Error: not in the tail\n" + STEP * TAIL_BYTES, NO_MESSAGE),
    ],
)
def test_a_log_gives_its_sentence(tmp_path, text, sentence):
    (tmp_path / "job.log").write_text(text)
    assert last_sentence(tmp_path / "job.log") == sentence


def test_bytes_that_are_not_text_do_not_hide_the_sentence(tmp_path):
    (tmp_path / "job.log").write_bytes(b"\xff\xfe\nError: the sentence\n")
    assert last_sentence(tmp_path / "job.log") == "the sentence"


def test_a_missing_log_is_said(tmp_path):
    assert last_sentence(tmp_path / "job.log") == NO_LOG
