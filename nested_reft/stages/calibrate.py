"""The calibration at the start of a training: what skipping each layer, and sets of layers, does to the policy.

`nested_reft.strategies` chooses layers by it. It is measured once, on completions of the model that the training
begins with, and kept in a file, so that a resumed training chooses the same layers.
"""

import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nested_reft.config.sections import Nesting, Training
from nested_reft.config.stage_settings import CalibrationSettings
from nested_reft.config.study import Run
from nested_reft.model.checks import check_nestable
from nested_reft.model.layers import decoder_layers, skippable_layers
from nested_reft.nesting import num_skipped
from nested_reft.processes import gather
from nested_reft.records.files import checksum, read_versioned_json, write_versioned_json
from nested_reft.records.stage_record import StageRecord
from nested_reft.rollout.divergence import CompletionSampler, divergences_of_sets, layer_kls, percentile
from nested_reft.strategies import Calibration, calibrated

FILE = "calibration.json"

log = logging.getLogger(__name__)


def calibrate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], settings: CalibrationSettings
) -> Calibration:
    """Measure a model for the strategies `calibrated` and `budget`; the global random state is not changed.

    The measurement is exact over the vocabulary at the tokens of one completion for each prompt, which the whole model
    samples. The overlap of a number of layers is that of the sets that `calibrated` draws at the first steps.

    Args:
        model: the model, which gets into evaluation mode.
        tokenizer: its tokenizer.
        prompts: texts, of which `settings.num_prompts` are drawn by the seed.
        settings: the settings; `border` and the largest of `skip_ratios` are those of the training.

    Raises:
        NestingError: if the model cannot be nested.
        ValueError: if a ratio skips more layers than may be skipped.
    """
    check_nestable(model)
    model.eval()
    valid = skippable_layers(model, settings.border)
    drawn = random.Random(f"nested-reft/calibration/{settings.seed}").sample(
        list(prompts), min(settings.num_prompts, len(prompts))
    )
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)  # sampler `generate` draws from the global random state
        rollouts = CompletionSampler(model, tokenizer, settings).sample(tokenizer(drawn)["input_ids"], [], step=0)
    of_layers = Calibration(layer_kls(model, valid, rollouts, settings), {})
    most = num_skipped(len(decoder_layers(model)), max(settings.skip_ratios))
    sets = [
        calibrated(valid, k, settings.seed, step, Nesting(), of_layers)
        for k in range(1, most + 1)
        for step in range(settings.num_sets)
    ]
    overlaps = [overlap for _, overlap in divergences_of_sets(model, sets, rollouts, settings)]
    overlap_p5 = {
        k: percentile(torch.cat(overlaps[(k - 1) * settings.num_sets : k * settings.num_sets]), 5)
        for k in range(1, most + 1)
    }
    return of_layers._replace(overlap_p5=overlap_p5)


def write_calibration(path: Path, calibration: Calibration, **facts: Any) -> None:
    """Write a calibration as a JSON file with further facts, such as the settings of the measurement."""
    write_versioned_json(path, facts | calibration._asdict())


def read_calibration(path: Path) -> Calibration:
    """Return the calibration of a file.

    Raises:
        UserError: the file is not JSON, or of another version.
    """
    content = read_versioned_json(path)
    by_number = [{int(number): value for number, value in content[name].items()} for name in Calibration._fields]
    return Calibration(*by_number)


def of_training(
    training: Training,
    run: Run,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    start: Path,
    record: StageRecord,
) -> Calibration:
    """Return the calibration of a training, which rank 0 measures at its first attempt; all ranks call this function.

    Until the training has finished, the file is with the checkpoints. The record deletes it with these if the model,
    the data or a setting has changed.

    Args:
        training: the settings of the training.
        run: the place of the training in the grid.
        model: the model that the training begins with, on the CPU.
        tokenizer: its tokenizer.
        prompts: the prompts of the training set.
        start: the folder of the model.
        record: the record of the training.
    """
    path = record.checkpoints / FILE
    if record.is_written and not path.exists():
        settings = CalibrationSettings(
            skip_ratios=[run.skip_ratio],
            border=run.border,
            max_completion_length=training.max_completion_length,
            fixed_length=training.fixed_length,
            batch_size=training.per_device_train_batch_size,
            temperature=training.temperature,
            dtype=training.dtype,
            seed=run.seed,
        )
        log.info("measuring what each layer of %s does to its policy", run.model)
        found = calibrate(model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, prompts, settings)
        model.to("cpu")
        measured_with = settings.model_dump(exclude={"template"})
        write_calibration(path, found, settings=measured_with, model_sha256=checksum(start))
    (of_rank_0, *_) = gather([read_calibration(path)] if record.is_written else [])
    return of_rank_0[0]
