"""The configuration of a study: its only definition, and the only place of defaults and ranges.

The defaults are the paper's values (arXiv 2508.10123), or marked `chosen` where it gives none.
`config/README.md` and `config/schema.json` are generated from the models below by
`nested-reft schema`. Nothing heavy is imported: Snakemake reads this module at every start.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator
from pydantic_core import PydanticCustomError

from nested_reft.embedded.problems import DATASETS

PACKAGE = Path(__file__).parent.parent
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")

# A name becomes a folder: `model~<name>`.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Seed = Annotated[int, Field(ge=0)]
SkipRatio = Annotated[float, Field(gt=0, lt=1)]
Mitigation = Literal["base", "practical", "retrace", "is", "tis"]


def key(default: Any, description: str, source: str = "chosen", unit: str = "", **constraints: Any) -> Any:
    """Return a pydantic field that carries what `config/README.md` says of the key.

    `source` is where the value comes from: `paper`, `restored` (lost in the paper's text, and
    reconstructed), `TRL` (the paper says "TRL's defaults": those of its day) or `chosen`.
    """
    extra: dict[str, Any] = {"source": source, "unit": unit}
    return Field(default, description=description, json_schema_extra=extra, **constraints)


class Section(BaseModel):
    """A closed group of keys: an unknown one is an error, and so are infinities."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class Source(Section):
    """Where something is loaded from."""

    path: str = key(
        ...,
        "Local path, hub name, or `embedded/<name>` for what ships with the package. "
        "A path that exists locally is never looked up on the hub.",
    )
    revision: str | None = key(None, "Commit, tag or branch on the hub; null takes the default branch.")

    @model_validator(mode="after")
    def path_can_be_resolved(self) -> "Source":
        """Refuse at once a path that neither exists nor can be a hub name."""
        here = self.path.strip(". /") and Path(self.path).expanduser().exists()
        if not self.is_embedded and not here and not HUB_NAME.fullmatch(self.path):
            raise ValueError("does not exist here and is not a hub name of the form owner/name; correct the path")
        return self

    @property
    def is_embedded(self) -> bool:
        """Whether the source ships with the package."""
        return self.path.startswith("embedded/")

    @property
    def name(self) -> str:
        """The part after `embedded/`."""
        return self.path.removeprefix("embedded/")

    @property
    def local_path(self) -> Path | None:
        """The local folder or file, or None when it has to be fetched from the hub."""
        path = PACKAGE / "embedded" / self.name if self.is_embedded else Path(self.path).expanduser()
        return path if path.exists() else None


class ModelSource(Source):
    """A causal language model in transformers' format, with its tokenizer."""

    @model_validator(mode="after")
    def embedded_model_exists(self) -> "ModelSource":
        """Refuse an embedded model that the package does not have."""
        if self.is_embedded and self.local_path is None:
            names = sorted(path.parent.name for path in (PACKAGE / "embedded").glob("*/config.json"))
            raise ValueError(f"is not an embedded model; choose one of {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def local_model_is_one(self) -> "ModelSource":
        """Refuse a local folder that holds no language model."""
        if self.local_path is not None and "num_hidden_layers" not in self.shape:
            raise ValueError("holds no config.json of a language model; give the folder of a transformers model")
        return self

    @property
    def shape(self) -> dict[str, Any]:
        """The model's config.json if it is here already; empty for one that has to be fetched first."""
        if self.local_path is None or not (self.local_path / "config.json").exists():
            return {}
        return json.loads((self.local_path / "config.json").read_text())


class DataSource(Source):
    """Problems with answers: a training set (with solutions) or a benchmark."""

    size: int | None = key(None, "Use the first so many rows; null uses all. Embedded data need it.", "paper", gt=0)

    @model_validator(mode="after")
    def embedded_data_exist(self) -> "DataSource":
        """Refuse embedded data that the package cannot generate."""
        if self.is_embedded and self.name not in DATASETS:
            raise ValueError(f"is not an embedded dataset; choose one of {', '.join(DATASETS)}")
        if self.is_embedded and self.size is None:
            raise ValueError("is generated and has no end; set its `size`")
        return self


class DatasetSource(DataSource):
    """A training set."""

    config_name: str | None = key(None, "Configuration of a hub dataset, as `main` of openai/gsm8k.", "paper")
    split: str = key("train", "Split of a hub dataset.", "paper")


class BenchmarkSource(DataSource):
    """A benchmark."""

    split: str = key("test", "Split of a hub dataset: the suite's own are named after the benchmarks.", "paper")


class Decontamination(Section):
    """What makes a training problem one of a benchmark. Those that are the same text always go."""

    # Measured against the five benchmarks at 8, 10 and 13 words: 1, 0 and 0 of GSM8K's 7,473 problems go, none of
    # SVAMP's 1,000, and the one is no duplicate. A stand-in for Math12k, MATH500 against the other four benchmarks,
    # loses 23, 7 and 2 of 500, all by stock phrases ("where m and n are relatively prime positive integers").
    # Where there are duplicates, 13 words find them: of GSM8K's training set 4 problems share as many with its test
    # set, 3 of them the same problem with other numbers; of the 94 that share 8 words, hardly any is.
    ngram: int = key(
        13,
        "A training problem that shares a run of so many words with a benchmark's is dropped too. Fewer words drop "
        "innocent problems by their stock phrases; data made from templates share whole sentences and need more.",
        unit="words",
        gt=0,
    )


class Grid(Section):
    """The axes of the study. Each (model, dataset, seed) also gets its baseline: skip ratio 0, base."""

    model: list[Name] = key(..., "Names from `models`.", "paper", min_length=1)
    dataset: list[Name] = key(..., "Names from `datasets`.", "paper", min_length=1)
    skip_ratio: list[SkipRatio] = key(
        [0.05, 0.10, 0.15], "Share x of all N layers that a roll-out skips: k = round(x N).", "paper", min_length=1
    )
    mitigation: list[Mitigation] = key(
        ["base", "practical", "retrace"],
        "What corrects for the off-policy samples. Beside the paper's three there are `is`, the plain importance "
        "weight, and `tis`, the same up to a cap.",
        "paper",
        min_length=1,
    )
    seed: list[Seed] = key([0], "One complete grid for each seed.", min_length=1)

    @model_validator(mode="after")
    def values_are_distinct(self) -> "Grid":
        """Refuse a value listed twice: it would be the same run twice."""
        for axis, values in self:
            repeated = [value for value in values if values.count(value) > 1]
            if repeated:
                raise ValueError(f"has a duplicate run: {repeated[0]!r} stands twice on the axis `{axis}`; keep one")
        return self


class Prompt(Section):
    """How a problem is put to the model, alike in SFT, training and evaluation."""

    template: Literal["qwen-math", "r1", "none"] = key("qwen-math", "Prompt template, by name.", "paper")


class Nesting(Section):
    """The behavior policy."""

    border: int = key(1, "b: layers i with b <= i < N-b may be skipped.", "paper", unit="layers", ge=1)
    retrace_lambda: float = key(
        1.0, "Lambda of `retrace`. Adam cancels a constant factor of the gradient, so it hardly matters.", gt=0
    )
    truncation_cap: float = key(2.0, "C of `tis`: no weight is larger.", gt=0)
    ratio_level: Literal["token", "sequence"] = key(
        "token",
        "Level of the ratio r in `retrace`, `is` and `tis`: each token's, or the product over its sequence.",
        "paper",
    )


class Optimization(Section):
    """What the two training stages share, in the names of transformers' TrainingArguments."""

    learning_rate: float = key(1e-6, "Peak learning rate of AdamW.", gt=0)
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = key("linear", "Learning rate schedule.", "TRL")
    warmup_steps: int = key(0, "Linear warm-up.", "TRL", unit="optimizer steps", ge=0)
    weight_decay: float = key(0.0, "AdamW's decoupled weight decay.", "TRL", ge=0)
    adam_beta1: float = key(0.9, "AdamW's first decay.", "TRL", ge=0, lt=1)
    adam_beta2: float = key(0.999, "AdamW's second decay.", "TRL", ge=0, lt=1)
    adam_epsilon: float = key(1e-8, "AdamW's epsilon.", "TRL", gt=0)
    max_grad_norm: float = key(1.0, "Gradients are clipped to this norm.", "TRL", gt=0)
    per_device_train_batch_size: int = key(8, "Sequences in one forward and backward pass.", unit="sequences", gt=0)
    dtype: Literal["float32", "bfloat16"] = key("float32", "Type of the master weights.", "TRL")
    bf16: bool = key(True, "Compute in bfloat16 by autocast.", "chosen")
    gradient_checkpointing: bool = key(True, "Recompute activations in the backward pass.", "chosen")
    save_steps: int = key(50, "A checkpoint to resume from after so many steps.", unit="optimizer steps", gt=0)


class Sft(Optimization):
    """The warm-up on (prompt, chain of thought), shared by the ten runs of a (model, dataset, seed)."""

    learning_rate: float = key(1e-5, "Peak learning rate of AdamW.", gt=0)
    num_train_epochs: float = key(2.0, "Passes over the training set.", unit="epochs", gt=0)
    batch_size: int = key(16, "Sequences per optimizer step.", unit="sequences", gt=0)
    max_length: int = key(1024, "Longer sequences are cut.", "TRL", unit="tokens", gt=0)

    @model_validator(mode="after")
    def batch_divides(self) -> "Sft":
        """Refuse a step that micro-batches cannot fill."""
        if self.batch_size % self.per_device_train_batch_size:
            raise ValueError(
                f"has batch_size {self.batch_size}, which per_device_train_batch_size "
                f"{self.per_device_train_batch_size} does not divide; change one of them"
            )
        return self


class Training(Optimization):
    """Nested-ReFT proper: reinforcement with roll-outs from the nested model, in TRL's names."""

    algorithm: Literal["grpo", "rloo"] = key("grpo", "TRL's trainer: GRPOTrainer or RLOOTrainer.", "paper")
    max_steps: int = key(500, "Gradient steps; one mask is drawn for each.", "restored", unit="optimizer steps", gt=0)
    prompts_per_step: int = key(16, "Prompts per optimizer step.", "restored", unit="prompts", gt=0)
    num_generations: int = key(8, "G: completions per prompt.", "TRL", unit="completions", ge=2)
    max_completion_length: int = key(256, "Length of a completion.", "restored", unit="tokens", gt=0)
    fixed_length: bool = key(True, "Ban the end token, so that all completions have equal length.", "paper")
    temperature: float = key(1.0, "Sampling temperature; log-probs are taken at it.", "TRL", gt=0)
    sampler: Literal["generate", "engine", "engine-compiled"] = key(
        "engine",
        "Who draws completions: transformers' `generate` as in stock TRL, the roll-out engine, or the engine with "
        "compiled layers (some seconds of compilation per job; on a GPU CUDA graphs, not yet measured). The same "
        "distribution, other draws. Where a model is not covered, a plainer one is taken and the log says why.",
    )
    sampling_dtype: Literal["float32", "bfloat16"] | None = key(
        None,
        "Type of a copy of the weights that completions are drawn from, renewed for each batch; null draws from the "
        "weights. Its rounding is part of the behavior policy. Not with sampler `generate`.",
    )
    top_p: float = key(
        1.0, "Must be 1: a filtered sampler's log-probs are not the behavior policy's.", "TRL", ge=1, le=1
    )
    top_k: int = key(0, "Must be 0, for the same reason.", "TRL", ge=0, le=0)
    beta: float = key(0.0, "KL penalty. Must be 0, as in the paper: no reference model.", "paper", ge=0, le=0)
    epsilon: float = key(0.2, "Clip range of the ratio.", "TRL", gt=0)
    num_iterations: int = key(1, "mu in the GRPO paper: passes over a generation batch.", "TRL", ge=1)
    steps_per_generation: int | None = key(
        None,
        "Micro-batches sampled at once, under one mask; null: those of one optimizer step. "
        "With more of them, samples outlive the policy that they are taken for.",
        "paper",
        unit="micro-batches",
        gt=0,
    )
    scale_rewards: Literal["group", "batch", "none"] = key("group", "What normalises the advantage of GRPO.", "TRL")
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = key(
        "bnpo", "How GRPO averages token losses. TRL's default has changed since the paper.", "TRL"
    )
    importance_sampling_level: Literal["token", "sequence"] = key(
        "token", "Level of GRPO's clipped ratio; `sequence` is the geometric mean of GSPO.", "paper"
    )

    @property
    def gradient_accumulation_steps(self) -> int:
        """Micro-batches of an optimizer step."""
        return self.prompts_per_step * self.num_generations // self.per_device_train_batch_size

    @property
    def prompts_per_generation(self) -> int:
        """Prompts whose completions are sampled at once."""
        micro_batches = self.steps_per_generation or self.gradient_accumulation_steps
        return micro_batches * self.per_device_train_batch_size // self.num_generations

    @property
    def optimizer_steps_per_generation(self) -> int:
        """Optimizer steps made of one generation batch."""
        micro_batches = self.steps_per_generation or self.gradient_accumulation_steps
        return micro_batches * self.num_iterations // self.gradient_accumulation_steps

    @model_validator(mode="after")
    def copy_has_a_reader(self) -> "Training":
        """Refuse a copy of the weights for a sampler that draws from the weights."""
        if self.sampling_dtype and self.sampler == "generate":
            raise ValueError(
                f"has sampling_dtype {self.sampling_dtype} with sampler generate, which draws from the weights "
                "themselves; set sampling_dtype to null, or sampler to engine or engine-compiled"
            )
        return self

    @model_validator(mode="after")
    def batch_divides(self) -> "Training":
        """Refuse steps and generations that micro-batches cannot fill, and checkpoints between generations."""
        step = self.prompts_per_step * self.num_generations
        if step % self.per_device_train_batch_size:
            raise ValueError(
                f"has prompts_per_step x num_generations = {step}, which per_device_train_batch_size "
                f"{self.per_device_train_batch_size} does not divide; change one of them"
            )
        if self.steps_per_generation and self.steps_per_generation % self.gradient_accumulation_steps:
            raise ValueError(
                f"has steps_per_generation {self.steps_per_generation}, which is no multiple of the "
                f"{self.gradient_accumulation_steps} micro-batches of an optimizer step; choose one"
            )
        if self.save_steps % self.optimizer_steps_per_generation:
            raise ValueError(
                f"has save_steps {self.save_steps}, which is no multiple of the {self.optimizer_steps_per_generation} "
                "optimizer steps made of one generation batch, and only between those can a run resume exactly; "
                "choose one"
            )
        return self


class Evaluation(Section):
    """The benchmark run: pass@1, and pass@k where several samples are taken per problem."""

    num_samples: int = key(
        1,
        "n: completions per problem. With more than one, pass@k is told for k = 2, 4, ... up to n; that needs a "
        "temperature above 0.",
        "restored",
        unit="completions",
        ge=1,
        le=1024,
    )
    temperature: float = key(0.0, "0 is greedy decoding.", "restored", ge=0)
    top_p: float = key(1.0, "Nucleus of the sampling distribution; 1 is all of it.", "restored", gt=0, le=1)
    max_new_tokens: int = key(3000, "Longest completion.", "restored", unit="tokens", gt=0)
    batch_size: int = key(32, "Completions generated at once.", unit="completions", gt=0)
    sampler: Literal["generate", "engine", "engine-compiled", "vllm"] = key(
        "engine",
        "Who draws completions: as in `training`, or vLLM where it is installed (`pip install .[vllm]`; not tested on "
        "a GPU yet).",
    )
    dtype: Literal["float32", "bfloat16"] = key("bfloat16", "Type of the weights.")
    seed: Seed = key(0, "Seed of the sampling, if any.")

    @model_validator(mode="after")
    def samples_differ(self) -> "Evaluation":
        """Refuse several samples of greedy decoding: they would be the same one."""
        if self.num_samples > 1 and self.temperature == 0:
            raise ValueError(
                f"has num_samples {self.num_samples} at temperature 0, where all samples of a problem are the same; "
                "set a temperature above 0, or num_samples to 1"
            )
        return self


class Analysis(Section):
    """Tables and figures."""

    confidence: float = key(0.95, "Level of the intervals.", gt=0.5, lt=1)


class Tracking(Section):
    """MLflow, which mirrors the files and is never needed for a result."""

    uri: str | None = key(
        "sqlite:///results/mlflow.db",
        "MLflow tracking store; null for none. On a cluster: the address of an MLflow server.",
    )

    @field_validator("uri")
    @classmethod
    def uri_holds_no_secret(cls, uri: str | None) -> str | None:
        """Refuse a password in the address: the config is copied beside results."""
        if uri is not None and re.search("//[^/]+@", uri):
            raise PydanticCustomError(
                "secret", "must not hold a password; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
            )
        return uri


class Jobs(Section):
    """What a job of `sft`, `train` and `evaluate` takes of the machine. Changing it reruns nothing."""

    threads: int = key(4, "CPU threads of a job.", unit="threads", gt=0)
    gpus: int = key(1, "GPUs of a job, at most one; 0 computes on the CPU.", unit="GPUs", ge=0, le=1)
