"""The cost of each job of a study on its card, and what would make a job fit."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from nested_reft.config.sections import Lora, Optimization
from nested_reft.config.study import Study
from nested_reft.errors import UserError
from nested_reft.model.shape import HUB_SHAPES, ModelShape, read_shape
from nested_reft.nesting import num_skipped
from nested_reft.plan.cards import CARDS, GIB, Card
from nested_reft.plan.costs import (
    Cost,
    Layout,
    evaluate_cost,
    measure_speed_cost,
    sft_cost,
    train_cost,
)
from nested_reft.plan.lengths import Texts, joined, lengths, texts_of
from nested_reft.plan.measured import measured_factors
from nested_reft.study.disk import SECTION_OF
from nested_reft.study.jobs import axes_of, job_paths, stage_of

# A completion of an evaluation is assumed to have this many tokens, or `max_new_tokens` if that is less.
COMPLETION_TOKENS = 750
# A job fits a card if it needs at most this share of the memory: the rest is lost to fragmentation.
USABLE_MEMORY = 0.92
# The numbers of GPUs that a remedy proposes.
MORE_GPUS = (2, 4, 8)
# The stages that are planned, in their order, and the section of each.
SECTIONS = {"measure_speed": "training"} | SECTION_OF | {"evaluate": "evaluation"}


class Row(NamedTuple):
    """The jobs of one stage and one model.

    Attributes:
        stage: `sft`, `train` or `evaluate`.
        model: the name of the model.
        costs: the cost of each job; empty if the shape of the model is not known.
        jobs: the number of jobs.
        card: the card that they run on.
    """

    stage: str
    model: str
    costs: list[Cost]
    jobs: int
    card: Card

    @property
    def largest(self) -> Cost:
        """The job that needs most memory."""
        return max(self.costs, key=lambda cost: cost.peak.total)

    @property
    def wall_seconds(self) -> tuple[float, float]:
        """The time of the shortest and of the longest job."""
        times = [cost.wall_seconds for cost in self.costs]
        return min(times), max(times)

    @property
    def job_seconds(self) -> float:
        """The time of all jobs, one after the other."""
        return sum(cost.wall_seconds for cost in self.costs)

    @property
    def device_seconds(self) -> float:
        """The time of all jobs, each multiplied by its GPUs; on a CPU, the time of all jobs."""
        return sum(cost.wall_seconds * max(1, cost.gpus) for cost in self.costs)

    @property
    def gpu_hours(self) -> float:
        """The GPU hours of all jobs."""
        return sum(cost.wall_seconds * cost.gpus for cost in self.costs) / 3600

    @property
    def fits(self) -> bool:
        """Whether the largest job fits the card."""
        return not self.card.is_gpu or self.largest.peak.total <= USABLE_MEMORY * self.card.memory


class Planner:
    """Plans the jobs of a study; shapes and lengths of texts are read once.

    Args:
        study: the study.
        cards: the card of each model.
        bench: files with measurements on the card, which correct the planned times.

    Raises:
        UserError: a file holds no measurement, or there are measurements and several cards.
    """

    def __init__(self, study: Study, cards: Mapping[str, Card], bench: list[Path] | None = None) -> None:
        self.study = study
        self.cards = {
            name: card.on_threads(max(1, study.jobs.threads // study.jobs.processes(name).count))
            for name, card in cards.items()
        }
        self.factors: dict[str, float] = {}
        if bench:
            if len({card.name for card in cards.values()}) > 1:
                raise UserError("--bench holds measurements on one card, but the models have several; name one card")
            self.factors = measured_factors(bench, next(iter(cards.values())))
        self.shapes = {name: shape_of(study, name) for name in study.grid.model}
        self.known: dict[tuple[Any, ...], Cost | None] = {}

    @cached_property
    def datasets(self) -> dict[tuple[str, str], Texts]:
        """(model, dataset) -> the texts of the training set."""
        return {
            (model, dataset): texts_of(self.study.datasets[dataset], *self.reading(model))
            for model in self.study.grid.model
            for dataset in self.study.grid.dataset
        }

    @cached_property
    def benchmarks(self) -> dict[str, Texts]:
        """The texts of all benchmarks together, by model."""
        sources = self.study.benchmarks.values()
        return {
            model: joined([texts_of(source, *self.reading(model)) for source in sources])
            for model in self.study.grid.model
        }

    @property
    def sizes(self) -> list[int]:
        """The number of problems of each benchmark."""
        reading = self.reading(self.study.grid.model[0])
        return [texts_of(source, *reading).rows for source in self.study.benchmarks.values()]

    def reading(self, model: str) -> tuple[str, Path | None]:
        """Return the template and the folder of the model, whose tokenizer counts tokens."""
        return self.study.prompt.template, self.study.models[model].local_path

    def layout(self, stage: str, model: str) -> Layout:
        """Return the processes of a job. An evaluation divides its problems, and no weights.

        For a measurement of speed, they are those of a training, of which it times the share of one.
        """
        of = self.study.processes("train" if stage == "measure_speed" else stage, model)
        return Layout(of.count, of.distributed == "fsdp" and stage != "evaluate")

    def cost(self, path: str) -> Cost | None:
        """Return the cost of a job, or None if the shape of its model is unknown.

        Args:
            path: the path of the job below the results.
        """
        axes, stage = axes_of(path), stage_of(path)
        skip_ratio = axes.get("skip_ratio") if stage == "train" else None
        key = (stage, axes["model"], axes.get("dataset") if stage != "evaluate" else None, skip_ratio)
        if key not in self.known:
            self.known[key] = self.cost_with(stage, axes["model"], axes.get("dataset", ""), float(skip_ratio or 0))
        return self.known[key]

    def cost_with(
        self,
        stage: str,
        model: str,
        dataset: str,
        skip_ratio: float,
        settings: Any = None,
        spread: Layout | None = None,
    ) -> Cost | None:
        """Return the cost of a job with other settings or another number of processes than those of the study."""
        shape, card = self.shapes[model], self.cards[model]
        spread = spread or self.layout(stage, model)
        settings = settings or getattr(self.study, SECTIONS[stage])
        if shape is None:
            return None
        if stage == "measure_speed":
            texts = joined([self.datasets[model, name] for name in self.study.grid.dataset])
            prompt = lengths(texts.prompts, settings.prompts_per_generation)
            counts = [num_skipped(shape.num_layers, ratio) for ratio in (0.0, *self.study.grid.skip_ratio)]
            rounds = self.study.analysis.speed_rounds
            cost = measure_speed_cost(shape, settings, rounds, prompt, counts, card, spread)
        elif stage == "evaluate":
            texts, tokens = self.benchmarks[model], min(COMPLETION_TOKENS, settings.max_new_tokens)
            prompt = lengths(texts.prompts, settings.batch_size)
            cost = evaluate_cost(shape, settings, texts.rows, prompt, tokens, card, spread)
        else:
            texts = self.datasets[model, dataset]
            if stage == "sft":
                text = lengths(texts.wholes, settings.per_device_train_batch_size)
                cost = sft_cost(shape, settings, texts.rows, text, texts.solution, card, spread)
            else:
                prompt = lengths(texts.prompts, settings.prompts_per_generation)
                k = num_skipped(shape.num_layers, skip_ratio)
                cost = train_cost(shape, settings, prompt, k, card, spread, self.study.nesting.whole_share)
        seconds = {phase: time * self.factors.get(phase, 1.0) for phase, time in cost.seconds.items()}
        return cost._replace(seconds=seconds)

    def rows(self) -> list[Row]:
        """Return a row for each stage and model, in the order of a study."""
        paths: dict[tuple[str, str], list[str]] = {}
        for path in job_paths(self.study):
            paths.setdefault((stage_of(path), axes_of(path)["model"]), []).append(path)
        order = sorted(paths, key=lambda key: (list(SECTIONS).index(key[0]), self.study.grid.model.index(key[1])))
        return [
            Row(
                stage,
                model,
                [cost for cost in map(self.cost, paths[stage, model]) if cost is not None],
                len(paths[stage, model]),
                self.cards[model],
            )
            for stage, model in order
        ]

    # ---- what would make a job fit --------------------------------------------------------------

    def fitting(self, row: Row) -> list[str]:
        """Return the changes of the study with which the jobs of a row fit their card, each with its memory."""
        section = SECTIONS[row.stage]
        settings = getattr(self.study, section)
        now, limit = self.layout(row.stage, row.model), USABLE_MEMORY * row.card.memory
        found: list[str] = []

        def memory(changed: Any, spread: Layout) -> float:
            costs = [
                self.cost_with(row.stage, row.model, dataset, 0.0, changed, spread)
                for dataset in self.study.grid.dataset
            ]
            return max(cost.peak.total for cost in costs if cost is not None)

        def attempt(changes: list[tuple[str, dict[str, Any]]], spread: Layout = now, gpus: str = "") -> bool:
            update: dict[str, Any] = {}
            for _, values in changes:
                update |= values
            needed = memory(settings.model_copy(update=update), spread)
            if needed <= limit:
                names = [f"{section}.{name}" for name, _ in changes] + ([gpus] if gpus else [])
                found.append(f"{' and '.join(names)} ({needed / GIB:.0f} GiB)")
            return needed <= limit

        if row.stage == "evaluate":
            size = settings.batch_size
            while (size := size // 2) and not attempt([(f"batch_size: {size}", {"batch_size": size})]):
                pass
            return found
        changes = list(changes_that_save(settings))
        for change in changes:
            attempt([change])
        if not found:
            attempt_all(changes, attempt)
        for number in MORE_GPUS:
            spread, sizes = Layout(number, sharded=True), self.micro_batches(row.model, number)
            if sizes is not None and number >= now.processes and spread != now:
                name = f"jobs.models.{row.model}: {{gpus: {number}, distributed: fsdp}}"
                own = {"per_device_train_batch_size": sizes.pop(f"{section}.per_device_train_batch_size", 0)}
                name += "".join(f" and {key}: {size}" for key, size in sizes.items())
                smaller = [(f"{key}: {size}", {key: size}) for key, size in own.items() if size]
                mildest = [change for change in changes if "optim" not in change[1]][
                    :1
                ]  # no 8-bit optimizer with FSDP
                if attempt(smaller, spread, name) or attempt([*mildest, *smaller], spread, name):
                    break
        return found

    def micro_batches(self, model: str, processes: int) -> dict[str, int] | None:
        """Return the micro-batches that must be smaller before a number of processes divides the steps of a model.

        Returns:
            Key -> value; None if the batch of a step is not a multiple of the processes.
        """
        smaller = {}
        for section in ("sft", "training") if self.study.warms_up(model) else ("training",):
            settings = getattr(self.study, section)
            now = settings.per_device_train_batch_size
            batch = settings.gradient_accumulation_steps * now
            sizes = [size for size in range(now, 0, -1) if batch % (size * processes) == 0]
            if not sizes:
                return None
            if sizes[0] != now:
                smaller[f"{section}.per_device_train_batch_size"] = sizes[0]
        return smaller


def attempt_all(changes: list[Any], attempt: Callable[[list[Any]], bool]) -> None:
    """Try pairs of changes, and then all of them together, until one is enough."""
    pairs = [[first, second] for place, first in enumerate(changes) for second in changes[place + 1 :]]
    if not [pair for pair in pairs if attempt(pair)]:
        attempt(changes)


def changes_that_save(settings: Optimization) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield changes of a section that save memory, as text and as values, from the mildest to the strongest."""
    if not settings.gradient_checkpointing:
        yield "gradient_checkpointing: true", {"gradient_checkpointing": True}
    if settings.per_device_train_batch_size > 1:
        yield "per_device_train_batch_size: 1", {"per_device_train_batch_size": 1}
    if getattr(settings, "sampling_dtype", "") is None and settings.dtype == "float32":
        yield "sampling_dtype: bfloat16", {"sampling_dtype": "bfloat16"}
    if settings.optim == "adamw_torch":
        yield "optim: paged_adamw_8bit", {"optim": "paged_adamw_8bit"}
    if settings.dtype == "float32":
        yield "dtype: bfloat16", {"dtype": "bfloat16"}
    if settings.lora is None:
        yield "lora: {r: 16}", {"lora": Lora(r=16)}


def shape_of(study: Study, name: str) -> ModelShape | None:
    """Return the shape of a model: of its folder, of the table of known models, or of the cache of the hub.

    The shape is None for a model that is not here, and for a GGUF file that is not dequantised yet.
    """
    source = study.models[name]
    if source.shape:
        return read_shape(source.shape)
    if source.path in HUB_SHAPES:
        return read_shape(HUB_SHAPES[source.path])
    if source.gguf_file is not None:
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(source.path, "config.json", revision=source.revision)
    return read_shape(json.loads(Path(cached).read_text())) if isinstance(cached, str) else None


def default_card(study: Study) -> str:
    """Return the card that is assumed if none is named."""
    return "a100-80gb" if study.jobs.most_gpus(study.grid.model) else "cpu"


def cards_of(study: Study, names: list[str]) -> dict[str, Card]:
    """Return the card of each model.

    Args:
        study: the study.
        names: cards, such as `h100` for all models or `MODEL=h100` for one of them; later ones take precedence.

    Raises:
        UserError: an option names a card that is not in `CARDS`, or a model that the study does not have.
    """
    chosen = dict.fromkeys(study.grid.model, default_card(study))
    for name in names:
        model, equals, card = name.rpartition("=")
        if card not in CARDS:
            raise UserError(f"--card {name} is not a card; choose one of {', '.join(CARDS)}")
        if equals and model not in chosen:
            raise UserError(f"--card {name} names no model of the study; choose one of {', '.join(chosen)}")
        chosen |= {model: card} if equals else dict.fromkeys(chosen, card)
    return {model: CARDS[card] for model, card in chosen.items()}
