"""The stage `measure_speed`: the time of a study's roll-outs at each skip ratio, while the machine does nothing else.

The speeds that trainings log are those of a machine that other jobs may share. Here all skip ratios are timed one
after the other in every round, so that what slows the machine down for a while slows all of them. Prompts, lengths and
batch are those of the study. The end token is banned, so that all completions are equally long and the time depends on
the shape of the model and on the number of layers skipped, and not on the weights: the pretrained model is timed.
"""

import logging
import time
from functools import partial
from pathlib import Path
from statistics import median

import torch
from peft import get_peft_model
from transformers import PreTrainedTokenizerBase

from nested_reft.bench.harness import run_interleaved, seconds, speed_up
from nested_reft.bench.rollout import bench_device, generation_config
from nested_reft.config.stage_settings import MeasureSpeedStage
from nested_reft.config.study import check_skip_ratios
from nested_reft.data.prompts import format_prompt
from nested_reft.errors import NestingError, UserError
from nested_reft.model.checks import check_structure
from nested_reft.model.layers import decoder_layers, parameter_counts, skippable_layers
from nested_reft.model.loading import end_token_ids, load_model
from nested_reft.model.lora import adapter_for
from nested_reft.nesting import draw_skipped_layers, num_skipped
from nested_reft.records.files import read_rows
from nested_reft.records.progress import duration
from nested_reft.records.stage_record import StageRecord
from nested_reft.rollout.sampler import Sampler

log = logging.getLogger(__name__)

# In metrics.jsonl: the seconds of a roll-out that skips this number of layers.
SECONDS = "seconds/{}_skipped"


def prompt_batches(
    settings: MeasureSpeedStage, data: list[Path], tokenizer: PreTrainedTokenizerBase, processes: int
) -> list[list[list[int]]]:
    """Return the prompts of the batch of each round, and of the warm-up, each repeated for each of its completions.

    The rounds take turns in the training sets, and go on in each where the last round on it has ended.

    Args:
        settings: the settings of the stage.
        data: the training sets.
        tokenizer: the tokenizer of the model.
        processes: the processes of a training, of which one samples its share of a batch.

    Raises:
        UserError: a training set has no problem.
    """
    texts = [[format_prompt(row["problem"], settings.prompt.template) for row in read_rows(file)] for file in data]
    for file, prompts in zip(data, texts, strict=True):
        if not prompts:
            raise UserError(f"{file} has no problem, so that no roll-out can be timed; take a larger training set")
    batches = []
    share = settings.prompts * settings.num_generations // processes
    for index in range(settings.rounds + 1):
        prompts, first = texts[index % len(texts)], index // len(texts) * settings.prompts
        chosen = [prompts[(first + place) % len(prompts)] for place in range(settings.prompts)]
        ids = tokenizer(chosen)["input_ids"]
        batches.append([prompt for prompt in ids for _ in range(settings.num_generations)][:share])
    return batches


def measure_speed(
    settings: MeasureSpeedStage, model_path: Path, data: list[Path], processes: int, record: StageRecord
) -> None:
    """Time the roll-outs of a study without skipping and at each of its skip ratios, in interleaved rounds.

    Args:
        settings: the settings of the stage.
        model_path: the folder of the model.
        data: the training sets of the study.
        processes: the processes of a training, which share a batch: the share of one of them is timed.
        record: gets a row per round with the seconds of each roll-out, and the speed-ups as metrics.

    Raises:
        UserError: if layers of the model cannot be skipped as configured, or if a training set has no problem.
    """
    device = bench_device()
    model, tokenizer = load_model(model_path, settings.dtype)
    layer_parameters, lm_head_parameters = parameter_counts(model)
    num_layers, shape = len(decoder_layers(model)), model.config.get_text_config().to_dict()
    try:
        check_structure(model)
        check_skip_ratios(settings.run.model, shape, settings.border, settings.skip_ratios)
    except NestingError as error:
        raise UserError(f"the speed of model {settings.run.model} cannot be measured: {error}") from None
    except ValueError as error:
        raise UserError(f"the config {error}") from None
    model = model.to(device).eval()
    if adapter := adapter_for(model, settings.lora, "training.lora"):
        model = get_peft_model(model, adapter)
    sampler = Sampler(settings.sampler, getattr(torch, settings.sampling_dtype or "", None))
    batches = prompt_batches(settings, data, tokenizer, processes)
    ends, valid = end_token_ids(model, tokenizer), skippable_layers(model, settings.border)
    config = generation_config(tokenizer, ends, settings.max_completion_length)
    counts = [0, *(num_skipped(num_layers, ratio) for ratio in settings.skip_ratios)]
    started, done = time.monotonic(), 0

    def measure(count: int, index: int) -> float:
        """Return the seconds of a roll-out that skips `count` layers, with the prompts of round `index`."""
        nonlocal done
        skipped = draw_skipped_layers(valid, count, seed=0, step=index)
        call = partial(sampler.sample, model, skipped, batches[index], config, list(ends), seed=0, step=index)
        took = seconds(call, device)
        done += 1
        if done % len(counts) == 0 and (rounds := done // len(counts) - 1) > 0:  # the first are the warm-up
            left = (time.monotonic() - started) / done * (len(counts) * (settings.rounds + 1) - done)
            log.info("step %d/%d: about %s left", rounds, settings.rounds, duration(left))
        return took

    _, samples = run_interleaved({str(count): partial(measure, count) for count in counts}, settings.rounds)
    tokens = len(batches[0]) * settings.max_completion_length
    for index in range(settings.rounds):
        times = {SECONDS.format(count): samples[str(count)][index] for count in counts}
        record.log(index + 1, {"prompt_tokens": sum(map(len, batches[index])), **times})
    metrics = {"completion_tokens": float(tokens)}
    for count in counts:
        metrics[f"tokens_per_second/{count}_skipped"] = tokens / median(samples[str(count)])
        if count:
            metrics[f"speed_up/{count}_skipped"] = speed_up(samples["0"], samples[str(count)])["median"]
    record.finish(
        metrics,
        num_layers=num_layers,
        layer_parameters=layer_parameters,
        lm_head_parameters=lm_head_parameters,
        sampler=sampler.kind,
        device=torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        threads=torch.get_num_threads(),
    )
