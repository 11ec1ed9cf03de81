"""The sections of a study's configuration: the only definition of every key, its default and its range.

The defaults are the values of the paper (arXiv 2508.10123). A default is marked `chosen` where the paper gives no
value. `nested-reft schema` generates `config/README.md` and `config/schema.json` from these classes. This module
imports nothing heavy, because Snakemake loads it at every start.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from nested_reft.config.local_path import local_path
from nested_reft.config.mirror import HUB_NAME, broken_link, is_fetched_revision, mirrored, read_manifest
from nested_reft.config.templates import TEMPLATES, read_template
from nested_reft.embedded.problems import DATASETS
from nested_reft.mitigation import MITIGATIONS, RATIO_LEVELS
from nested_reft.nesting import num_whole
from nested_reft.strategies import STRATEGIES

PACKAGE = Path(__file__).parent.parent
# In the folder of a model that was made from a GGUF file: the file, and the checksums of what was made from it.
GGUF_RECORD = "gguf.json"


@dataclass(frozen=True)
class KeyOf:
    """Annotation of a text that must be a key of a registry; errors and the JSON schema list the keys."""

    registry: Mapping[str, Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        return core_schema.literal_schema(list(self.registry))


# A name is part of a folder's name: `model~<name>`.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Seed = Annotated[int, Field(ge=0)]
SkipRatio = Annotated[float, Field(gt=0, lt=1)]
Border = Annotated[int, Field(ge=1)]
Mitigation = Annotated[str, KeyOf(MITIGATIONS)]
RatioLevel = Annotated[str, KeyOf(RATIO_LEVELS)]
Strategy = Annotated[str, KeyOf(STRATEGIES)]
TEMPLATE_SCHEMA = {"anyOf": [{"enum": list(TEMPLATES)}, {"type": "string"}]}
Template = Annotated[str, AfterValidator(read_template), WithJsonSchema(TEMPLATE_SCHEMA)]
Dtype = Literal["float32", "bfloat16"]
Sampler = Literal["generate", "engine", "engine-compiled", "vllm"]


def key(default: Any, description: str, source: str = "chosen", unit: str = "", **constraints: Any) -> Any:
    """Return a pydantic field with the facts that `config/README.md` prints about the key.

    Args:
        default: the default value, or ... for a key that is required.
        description: the meaning of the key, in full sentences.
        source: where the default comes from: `paper`, `restored` (the text of the paper has lost the value, and it
            was reconstructed), `TRL` (the paper says "TRL's defaults", which were these when it appeared) or `chosen`.
        unit: the unit of the value.
        constraints: the range of the value, in the words of pydantic's `Field`.
    """
    extra: dict[str, Any] = {"source": source, "unit": unit}
    return Field(default, description=description, json_schema_extra=extra, **constraints)


class Section(BaseModel):
    """A closed group of keys: an unknown key is an error, and so is an infinite value."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


def local_folder(path: str) -> Path | None:
    """Return the local folder or file of a path of the config, or None if there is none."""
    is_embedded = path.startswith("embedded/")
    local = PACKAGE / path if is_embedded else local_path(path)
    try:
        return local if local.exists() else None
    except OSError:  # a name that is too long
        return None


def dequantised_folder(gguf_file: Path) -> Path:
    """Return the folder for the dequantised model of a GGUF file: beside it, with its name without the suffix."""
    return gguf_file.with_suffix("")


def convert_first(gguf_file: Path) -> str:
    """Return the sentence about a GGUF file where a command needs the folder of a model."""
    return (
        f"{gguf_file} is a GGUF file and not the folder of a model; run `nested-reft prepare gguf {gguf_file}`, which "
        f"writes the folder {dequantised_folder(gguf_file)}, and give that folder"
    )


def model_shape(folder: Path | None) -> dict[str, Any]:
    """Return the content of a model's config.json, or an empty dict if the folder has none."""
    if folder is None or not (folder / "config.json").exists():
        return {}
    try:
        content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except json.JSONDecodeError as error:
        raise ValueError(
            f"has a config.json that is not JSON (line {error.lineno}: {error.msg}); download or copy the model again"
        ) from None
    return content


ROWS = re.compile(r"(\d*):(\d*)")


def slice_of(rows: str) -> slice:
    """Return the slice that a text such as `700:1000` means; its start is a number."""
    first, _, end = rows.partition(":")
    return slice(int(first or 0), int(end) if end else None)


class Source(Section):
    """The place that a model or a data set is loaded from."""

    path: str = key(
        ...,
        "A local path, a name on the Hugging Face hub, or `embedded/<name>` for a model or data set of this package. "
        "A path that exists locally is never looked up on the hub, and neither is a name that the `mirror` has.",
    )
    revision: str | None = key(
        None,
        "The commit, tag or branch on the hub. null means the default branch, or what the `mirror` has. Another "
        "revision in the mirror is refused.",
    )

    @model_validator(mode="after")
    def path_can_be_resolved(self) -> "Source":
        """Refuse a path that neither exists nor has the form of a hub name, before anything is loaded."""
        exists = self.path.strip(". /") and local_folder(self.path)
        if not self.is_embedded and not exists and not HUB_NAME.fullmatch(self.path):
            raise ValueError("does not exist and is not a hub name of the form owner/name; correct the path")
        return self

    @property
    def is_embedded(self) -> bool:
        """Whether the source is part of this package."""
        return self.path.startswith("embedded/")

    @property
    def name(self) -> str:
        """The part after `embedded/`."""
        return self.path.removeprefix("embedded/")

    @model_validator(mode="after")
    def mirror_has_the_revision(self) -> "Source":
        """Refuse an entry of the mirror that is another revision than the study's, or an unknown one."""
        entry = self.in_mirror
        if self.revision is None or entry is None or is_fetched_revision(self.revision, read_manifest(entry)):
            return self
        manifest = read_manifest(entry)
        found = f"revision {manifest['revision'] or manifest['commit']}" if manifest else "an unknown revision"
        raise ValueError(
            f"has revision {self.revision}, but the mirror has {found} in {entry}; change `revision`, or remove that "
            "folder and run `nested-reft fetch`"
        )

    @property
    def in_mirror(self) -> Path | None:
        """The folder in the mirror, or None for a source that is local, part of this package, or only on the hub."""
        return None if self.is_embedded or local_folder(self.path) is not None else mirrored(self.path)

    @property
    def local_path(self) -> Path | None:
        """The local folder or file, which may be in the mirror, or None for a source that is only on the hub."""
        return local_folder(self.path) or self.in_mirror

    @property
    def known_revision(self) -> str | None:
        """The commit that the mirror has, or else the revision of the study, for a record of what was read."""
        entry = self.in_mirror
        return (read_manifest(entry).get("commit") if entry else None) or self.revision


class ModelSource(Source):
    """A causal language model in the format of transformers, with its tokenizer, or in a GGUF file."""

    path: str = key(
        ...,
        "A folder in the format of transformers, a GGUF file, a name on the Hugging Face hub, or `embedded/<name>` "
        "for a model of this package. A path that exists locally is never looked up on the hub, nor is a name in the "
        "`mirror`. A GGUF file `x.gguf` is dequantised into the folder `x` beside it before the first job.",
    )
    sft_checkpoint: str | None = key(
        None,
        "The folder of your own model, from which trainings start instead of from a warm-up by `sft`. `{dataset}` and "
        "`{seed}` in the path stand for those of a training. null runs the warm-up.",
    )

    @model_validator(mode="after")
    def embedded_model_exists(self) -> "ModelSource":
        """Refuse the name of an embedded model that does not exist."""
        if self.is_embedded and self.local_path is None:
            names = sorted(path.parent.name for path in (PACKAGE / "embedded").glob("*/config.json"))
            raise ValueError(f"is not an embedded model; choose one of {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def local_folder_holds_a_model(self) -> "ModelSource":
        """Refuse a local folder that holds no language model, and the path of a GGUF file that does not exist."""
        if self.path.endswith(".gguf") and local_folder(self.path) is None:
            raise ValueError("does not exist, and a GGUF file is not fetched from the hub; correct the path")
        if self.local_path is not None and "num_hidden_layers" not in self.shape:
            if files := sorted(self.local_path.glob("*.gguf")):
                raise ValueError(f"holds no config.json, but a GGUF file; give the path of the file: {files[0]}")
            if self.in_mirror:
                raise ValueError(
                    f"is in the mirror without the config.json of a language model{broken_link(self.in_mirror)}; "
                    f"remove {self.in_mirror} and run `nested-reft fetch`"
                )
            raise ValueError("holds no config.json of a language model; give the folder of a transformers model")
        return self

    @property
    def gguf_file(self) -> Path | None:
        """The GGUF file of the model, or None for a model in the format of transformers."""
        local = local_folder(self.path)
        return local if local is not None and local.suffix == ".gguf" and local.is_file() else None

    @property
    def local_path(self) -> Path | None:
        """The folder of the model; None for a model on the hub, and for a GGUF file that is not dequantised yet."""
        if self.gguf_file is None:
            return super().local_path
        folder = dequantised_folder(self.gguf_file)
        return folder if (folder / GGUF_RECORD).exists() else None

    @property
    def shape(self) -> dict[str, Any]:
        """The content of the model's config.json, or an empty dict for a model without a local folder."""
        return model_shape(self.local_path)

    def checkpoint(self, dataset: str, seed: int | str) -> str | None:
        """Return `sft_checkpoint` for a dataset and a seed, or None if there is a warm-up."""
        if self.sft_checkpoint is None:
            return None
        return self.sft_checkpoint.replace("{dataset}", dataset).replace("{seed}", str(seed))


class DataSource(Source):
    """A set of problems with answers: a training set, which also has solutions, or a benchmark."""

    size: int | None = key(
        None,
        "The number of rows to use, counted from the first. null uses all rows. An embedded data set requires a size.",
        "paper",
        unit="rows",
        gt=0,
    )
    rows: str | None = key(
        None,
        'The rows `"first:end"` to use, counted from 0 and without the row `end`, for data without splits: `"0:700"` '
        'for training and `"700:1000"` for a benchmark. `"700:"` goes to the last row. `size` counts from the first '
        "row of the slice. null uses all rows.",
        unit="rows",
        exclude_if=lambda rows: rows is None,  # the settings of studies without it stay as they were
    )

    @field_validator("rows", mode="before")
    @classmethod
    def rows_are_a_slice(cls, rows: Any) -> Any:
        """Refuse a text that is not a slice, an empty slice, and the number that YAML makes of `10:50`."""
        if isinstance(rows, int):
            raise ValueError(f'is the number {rows}, which YAML reads from digits such as 10:50; quote them: "10:50"')
        if isinstance(rows, str):
            if not ROWS.fullmatch(rows):
                raise ValueError(f'is {rows!r:.200}, but should be two row numbers such as "700:1000"; correct it')
            first, end = slice_of(rows).start, slice_of(rows).stop
            if end is not None and first >= end:
                raise ValueError(f"is {rows!r}, which holds no row; give a larger number after the colon")
        return rows

    @property
    def row_slice(self) -> slice:
        """The slice of all rows that `rows` and `size` select."""
        selected = slice_of(self.rows or ":")
        last = None if self.size is None else selected.start + self.size
        return slice(selected.start, min(filter(None, (selected.stop, last)), default=None))

    @model_validator(mode="after")
    def embedded_data_exist(self) -> "DataSource":
        """Refuse the name of an embedded data set that does not exist, and one without a size or with `rows`."""
        if self.is_embedded and self.name not in DATASETS:
            raise ValueError(f"is not an embedded dataset; choose one of {', '.join(DATASETS)}")
        if self.is_embedded and self.size is None:
            raise ValueError("is generated and has no last row; set its `size`")
        if self.is_embedded and self.rows is not None:
            raise ValueError("is generated and has no `rows` to choose from; set only its `size`")
        return self


class DatasetSource(DataSource):
    """A training set."""

    config_name: str | None = key(
        None, "The configuration of a hub dataset, for example `main` of openai/gsm8k.", "paper"
    )
    split: str = key("train", "The split of a hub dataset.", "paper")


class BenchmarkSource(DataSource):
    """A benchmark."""

    config_name: str | None = key(
        None,
        "The configuration of a hub dataset, for example `main` of openai/gsm8k.",
        exclude_if=lambda name: name is None,  # the settings of studies without it stay as they were
    )
    split: str = key(
        "test",
        "The split of a hub dataset. In the suite of the paper each benchmark is a split of its own.",
        "paper",
    )


class Decontamination(Section):
    """When to drop a training problem as contaminated. Exact matches with a benchmark problem are always dropped.

    The default is 13 words, because stock phrases cause false positives at 8 to 10 words (docs/how-to/dataset.md).
    """

    ngram: int = key(
        13,
        "A training problem that shares a run of this many words with a benchmark problem is dropped. A smaller "
        "number drops unrelated problems because of common phrases. Problems made from templates share whole "
        "sentences and need a larger number.",
        unit="words",
        gt=0,
    )


class Grid(Section):
    """The axes of the study. Each (model, dataset, seed) also has a baseline run, which skips no layers."""

    model: list[Name] = key(..., "Names of entries in `models`.", "paper", min_length=1)
    dataset: list[Name] = key(..., "Names of entries in `datasets`.", "paper", min_length=1)
    skip_ratio: list[SkipRatio] = key(
        [0.05, 0.10, 0.15],
        "The share x of all N layers that a roll-out skips: k = round(x N) layers.",
        "paper",
        min_length=1,
    )
    border: list[Border] = key(
        [1],
        "b: a roll-out skips only layers i with b <= i < N-b. Each border adds all skip ratios and mitigations, and "
        "all borders share the baseline.",
        "paper",
        unit="layers",
        min_length=1,
    )
    mitigation: list[Mitigation] = key(
        ["base", "practical", "retrace"],
        "The token weights that correct for the difference between the behavior policy and the target policy. The "
        "paper has `base`, `practical` and `retrace`; the others are corrections of the field. "
        "docs/concepts/algorithm.md has the formula of each.",
        "paper",
        min_length=1,
    )
    seed: list[Seed] = key([0], "The seeds. Each seed adds a complete grid of runs.", min_length=1)

    @field_validator("*", mode="before")
    @classmethod
    def one_value_is_a_list(cls, value: Any) -> Any:
        """Accept a single value, as in `grid.seed=3`, as the list of that value."""
        return [value] if isinstance(value, int | float | str) else value

    @model_validator(mode="after")
    def values_are_distinct(self) -> "Grid":
        """Refuse a repeated value, which would give the same run twice."""
        for axis, values in self:
            repeated = [value for value in values if values.count(value) > 1]
            if repeated:
                raise ValueError(f"has a duplicate run: the axis `{axis}` lists {repeated[0]!r} twice; keep one")
        return self


class Prompt(Section):
    """The prompt, which is the same in SFT, training and evaluation."""

    template: Template = key(
        "qwen-math",
        "The prompt template: a name, the path of a text file, or the text itself. `{problem}` in a text is the place "
        "of the problem.",
        "paper",
    )


class Nesting(Section):
    """Which layers are skipped, the share of the whole model in the roll-outs, the parameters of the mitigations."""

    # The settings of studies without the keys of strategies, or without a share, stay as they were before these keys.
    strategy: Strategy = key(
        "uniform",
        "How the layers to skip are chosen at each step. `uniform` draws them uniformly. `fixed` skips "
        "`nesting.skipped_layers`. `calibrated` takes of four uniform draws the one with the smallest predicted "
        "KL(mu || pi), from a measurement at the start of each training. `budget` does the same with fewer layers "
        "than the skip ratio asks for, or none, where the tokens would otherwise be too far off-policy; "
        "`nested-reft plan` counts all of them. docs/how-to/strategy.md explains the choice.",
        "paper",
        exclude_if=lambda strategy: strategy == "uniform",
    )
    skipped_layers: list[Annotated[int, Field(ge=0)]] = key(
        [],
        "The layers that `fixed` skips at each step, as many as the skip ratio asks for; counted from 0.",
        exclude_if=lambda layers: not layers,
    )
    budget_tau: float = key(
        0.86,
        "The smallest overlap of `budget`: it skips the largest number of layers up to that of the skip ratio for "
        "which 95 % of the tokens have 1 - TV(mu, pi) of at least this value.",
        gt=0,
        lt=1,
        exclude_if=lambda tau: tau == 0.86,
    )
    whole_share: float = key(
        0.0,
        "b: the share of the completions of each prompt that the whole model samples, while the nested model samples "
        "the others. The ratio is then that to the mixture, pi / (b pi + (1-b) mu), which is at most 1/b. b times "
        "`training.num_generations` must be a whole number. 0 samples all completions from the nested model.",
        "paper",
        ge=0,
        lt=1,
        exclude_if=lambda share: share == 0,
    )

    retrace_lambda: float = key(
        1.0,
        "The factor lambda of `retrace` and `trace`. Adam is invariant to a constant factor of the gradient, so in "
        "`retrace` lambda matters only through gradient clipping and epsilon. In `trace` each token before a token "
        "adds a factor lambda.",
        gt=0,
    )
    truncation_cap: float = key(2.0, "The cap C of `tis`: the largest weight of a token.", gt=0)
    icepop_min: float = key(0.5, "The lower bound alpha of `icepop`: the smallest ratio that is kept.", ge=0, le=1)
    icepop_max: float = key(5.0, "The upper bound beta of `icepop`: the largest ratio that is kept.", ge=1)
    sequence_mask_cap: float = key(
        3.0,
        "The cap C of `sequence_mask`: a sequence is kept up to this product of the ratios of its tokens.",
        "TRL",
        ge=1,
    )
    geometric_mask_bound: float = key(
        1.1,
        "The bound C of `geometric_mask`: a sequence is kept if the geometric mean of the ratios of its tokens is "
        "from 1/C to C.",
        gt=1,
    )
    opsm_threshold: float = key(
        0.1,
        "The threshold delta of `opsm`: a sequence with a negative advantage is kept up to this mean of log mu - log "
        "pi over its tokens.",
        unit="nats per token",
        gt=0,
    )
    ratio_level: RatioLevel = key(
        "token",
        "The level of the ratio r in `retrace`, `is`, `tis`, `icepop`, `sequence_mask` and `geometric_mask`: `token` "
        "is the ratio of each token, `prefix` the product of the ratios up to the token, `prefix_min` the smallest "
        "ratio up to the token, `sequence` the product over the sequence, and `geometric` the geometric mean over the "
        "sequence.",
        "paper",
    )

    @model_validator(mode="after")
    def layers_belong_to_fixed(self) -> "Nesting":
        """Refuse `fixed` without its layers, and layers that no strategy reads."""
        if self.strategy == "fixed" and not self.skipped_layers:
            raise ValueError("has strategy fixed without skipped_layers; list the layers to skip in skipped_layers")
        if self.strategy != "fixed" and self.skipped_layers:
            raise ValueError(
                f"has skipped_layers {self.skipped_layers} with strategy {self.strategy}, which does not read them; "
                "set strategy to fixed, or leave skipped_layers out"
            )
        return self


def check_whole_share(nesting: Nesting, training: "Training") -> None:
    """Check that the whole model samples a whole number of the completions of a prompt, with a sampler that can.

    Raises:
        ValueError: it does not.
    """
    try:
        num_whole(nesting.whole_share, training.num_generations)
    except ValueError as error:
        raise ValueError(f"has a section nesting whose {error}") from None
    if nesting.whole_share and training.sampler == "vllm":
        raise ValueError(
            f"has nesting.whole_share {nesting.whole_share:g} with training.sampler vllm, which has an engine for one "
            "number of layers; set nesting.whole_share to 0, or training.sampler to engine"
        )


class Lora(Section):
    """A LoRA adapter that is trained in place of all weights. The names are those of LoraConfig in peft."""

    r: int = key(16, "The rank of the adapter.", "TRL", ge=1)
    lora_alpha: int = key(32, "The adapter is scaled by lora_alpha / r.", "TRL", ge=1)
    target_modules: list[str] = key(
        ["all-linear"],
        "The modules that get an adapter, by the ends of their names, such as `[q_proj, v_proj]`. `all-linear` stands "
        "for all linear layers of the decoder.",
        min_length=1,
    )
    lora_dropout: float = key(
        0.0,
        "The dropout of the adapter's input. It must be 0 in `training`, where the log-probabilities of the training "
        "forward would not be those of the policy that sampled.",
        ge=0,
        lt=1,
    )

    @field_validator("target_modules", mode="before")
    @classmethod
    def one_name_is_a_list(cls, value: Any) -> Any:
        """Accept a single name, as in `target_modules: all-linear`, as the list of that name."""
        return [value] if isinstance(value, str) else value


class Optimization(Section):
    """The keys that the two training stages share. The names are those of TrainingArguments in transformers."""

    learning_rate: float = key(1e-6, "The peak learning rate of AdamW.", gt=0)
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = key("linear", "The learning rate schedule.", "TRL")
    warmup_steps: int = key(0, "The length of the linear warm-up.", "TRL", unit="optimizer steps", ge=0)
    weight_decay: float = key(0.0, "The decoupled weight decay of AdamW.", "TRL", ge=0)
    adam_beta1: float = key(0.9, "The decay rate of AdamW's first moment.", "TRL", ge=0, lt=1)
    adam_beta2: float = key(0.999, "The decay rate of AdamW's second moment.", "TRL", ge=0, lt=1)
    adam_epsilon: float = key(1e-8, "The epsilon of AdamW.", "TRL", gt=0)
    max_grad_norm: float = key(1.0, "The norm that gradients are clipped to.", "TRL", gt=0)
    optim: Literal["adamw_torch", "paged_adamw_8bit"] = key(
        "adamw_torch",
        "The optimizer, in the words of transformers: AdamW, or AdamW with moments of 8 bits, which are moved to the "
        "memory of the CPU when the GPU is full. The latter needs an NVIDIA GPU and bitsandbytes "
        "(`pip install .[bitsandbytes]`).",
        "TRL",
    )
    per_device_train_batch_size: int = key(
        8, "The micro-batch: sequences in one forward and backward pass.", unit="sequences", gt=0
    )
    dtype: Dtype = key("float32", "The data type of the master weights.", "TRL")
    bf16: bool = key(True, "Whether forward and backward passes run in bfloat16 by autocast.", "chosen")
    gradient_checkpointing: bool = key(
        True, "Whether activations are recomputed in the backward pass to save memory.", "chosen"
    )
    lora: Lora | None = key(
        None,
        "The LoRA adapter that is trained while all other weights are frozen. At the end it is merged into the "
        "weights, so that the result is a plain model. null trains all weights.",
    )
    save_steps: int = key(
        50,
        "The steps between two checkpoints. An interrupted job resumes from the last.",
        unit="optimizer steps",
        gt=0,
    )


class Sft(Optimization):
    """The SFT warm-up on (prompt, chain of thought). All runs of a (model, dataset, seed) start from one warm-up."""

    learning_rate: float = key(1e-5, "The peak learning rate of AdamW.", gt=0)
    num_train_epochs: float = key(
        2.0,
        "The number of passes over the training set. 0 leaves the warm-up out, so that trainings start from the "
        "pretrained model.",
        unit="epochs",
        ge=0,
    )
    batch_size: int = key(16, "Sequences per optimizer step.", unit="sequences", gt=0)
    max_length: int = key(1024, "The length that longer sequences are cut to.", "TRL", unit="tokens", gt=0)

    @property
    def gradient_accumulation_steps(self) -> int:
        """The number of micro-batches of an optimizer step, over all processes."""
        return self.batch_size // self.per_device_train_batch_size

    def check_processes(self, num_processes: int) -> None:
        """Check that the micro-batches of an optimizer step can be divided among processes.

        Raises:
            ValueError: they cannot.
        """
        if self.gradient_accumulation_steps % num_processes:
            raise ValueError(
                f"has batch_size {self.batch_size}, which {num_processes} processes with per_device_train_batch_size "
                f"{self.per_device_train_batch_size} do not divide; change one of them"
            )

    @model_validator(mode="after")
    def batch_divides(self) -> "Sft":
        """Refuse a batch that is not a whole number of micro-batches."""
        if self.batch_size % self.per_device_train_batch_size:
            raise ValueError(
                f"has batch_size {self.batch_size}, which per_device_train_batch_size "
                f"{self.per_device_train_batch_size} does not divide; change one of them"
            )
        return self


class Training(Optimization):
    """Nested-ReFT: reinforcement with roll-outs from the nested model. The names are those of TRL."""

    algorithm: Literal["grpo", "rloo"] = key("grpo", "The trainer of TRL: GRPOTrainer or RLOOTrainer.", "paper")
    max_steps: int = key(500, "The number of optimizer steps.", "restored", unit="optimizer steps", gt=0)
    prompts_per_step: int = key(16, "Prompts per optimizer step.", "restored", unit="prompts", gt=0)
    num_generations: int = key(8, "G: completions per prompt.", "TRL", unit="completions", ge=2)
    max_completion_length: int = key(256, "The length of a completion.", "restored", unit="tokens", gt=0)
    fixed_length: bool = key(
        True, "Whether the EOS tokens are banned, which gives all completions the same length.", "paper"
    )
    temperature: float = key(
        1.0, "The sampling temperature. Log-probabilities are taken at the same temperature.", "TRL", gt=0
    )
    sampler: Sampler = key(
        "engine",
        "The sampler of roll-outs: `generate` is the method of transformers, as in stock TRL; `engine` is the "
        "roll-out engine of this package; `engine-compiled` is the engine with compiled layers, which costs some "
        "seconds of compilation per job and uses CUDA graphs on a GPU (not yet measured there); `vllm` is vLLM, where "
        "it is installed (`pip install .[vllm]`; not yet tested on a GPU). All samplers draw from the same "
        "distribution, but draw different completions. A model that an engine does not support is sampled with a "
        "simpler sampler, and the log gives the reason. A model that vLLM does not support is refused.",
    )
    sampling_dtype: Dtype | None = key(
        None,
        "The data type of a copy of the weights for sampling. The copy is renewed for each batch, and its rounding is "
        "part of the behavior policy. null samples from the weights themselves. The sampler `generate` has no copy.",
    )
    top_p: float = key(
        1.0,
        "Fixed at 1: with nucleus sampling, the log-probabilities would not be those of the behavior policy.",
        "TRL",
        ge=1,
        le=1,
    )
    top_k: int = key(
        0,
        "Fixed at 0, no top-k filter: with one, the log-probabilities would not be those of the behavior policy.",
        "TRL",
        ge=0,
        le=0,
    )
    beta: float = key(
        0.0,
        "Fixed at 0, the weight of the KL penalty in the paper, so that training needs no reference model.",
        "paper",
        ge=0,
        le=0,
    )
    epsilon: float = key(0.2, "The clip range of the ratio.", "TRL", gt=0)
    epsilon_high: float | None = key(
        None,
        "The upper end of the clip range, as in DAPO: the ratio is clipped at 1 + epsilon_high. null takes `epsilon`. "
        "With `loss_type: cispo` it is the largest ratio itself, and has to be set.",
        "TRL",
        gt=0,
    )
    num_iterations: int = key(1, "The number of passes over a generation batch (mu in the GRPO paper).", "TRL", ge=1)
    steps_per_generation: int | None = key(
        None,
        "Micro-batches that are sampled at once, with one set of skipped layers. null means the micro-batches of one "
        "optimizer step. Larger values reuse samples across optimizer steps, which makes the samples off-policy.",
        "paper",
        unit="micro-batches",
        gt=0,
    )
    reward_funcs: Annotated[list[str], Field(min_length=1)] | None = key(
        None,
        "The reward functions, whose weighted sum is the reward: `correctness` (1 for a right answer, else 0), "
        "`first_answer_correctness` (the same for the first answer of a completion, without the text after it), or "
        "your own as `path/to/file.py:function` or `package.module:function`, with the signature of TRL. null takes "
        "`first_answer_correctness` with `fixed_length`, and else `correctness`.",
        "paper",
    )
    reward_weights: list[float] | None = key(
        None, "The weight of each function in `reward_funcs`. null weights each with 1.", "TRL"
    )
    scale_rewards: Literal["group", "batch", "none"] = key(
        "group", "The set of rewards whose standard deviation normalizes the advantage of GRPO.", "TRL"
    )
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "sapo", "cispo"] = key(
        "bnpo",
        "The loss of GRPO in TRL. The first four differ in the average over tokens, and `luspo` sums over the tokens "
        "of a completion; `sapo` replaces the clip by a smooth gate, and `cispo` cuts the ratio without cutting the "
        "gradient. The default of TRL has changed since the paper.",
        "TRL",
    )
    importance_sampling_level: Literal["token", "sequence"] = key(
        "token", "The level of the clipped ratio of GRPO. `sequence` is the geometric mean of GSPO.", "paper"
    )
    share_prompts: bool = key(
        False,
        "Whether an update reads each prompt of a micro-batch once, for all of its completions, whose tokens attend "
        "to it. This is faster with long prompts and many completions, and fastest where a micro-batch has all "
        "completions of its prompts. The gradient is that of TRL except for rounding. Only families are accepted for "
        "which this is tested.",
    )
    log_completions: bool = key(
        False,
        "Whether the folder of a training keeps the completions of each optimizer step in Parquet files: prompts, "
        "tokens, log-probabilities under both policies, skipped layers, rewards, advantages and token weights. From "
        "these, `nested-reft replay` computes the off-policy metrics of other mitigations. The training stays the "
        "same.",
        "TRL",
    )
    completions_total_limit: int = key(
        500,
        "The number of optimizer steps whose completions are kept with `log_completions`. The files of older steps "
        "are deleted.",
        unit="optimizer steps",
        gt=0,
    )

    @property
    def gradient_accumulation_steps(self) -> int:
        """The number of micro-batches of an optimizer step, over all processes."""
        return self.prompts_per_step * self.num_generations // self.per_device_train_batch_size

    @property
    def prompts_per_generation(self) -> int:
        """The number of prompts whose completions are sampled at once."""
        micro_batches = self.steps_per_generation or self.gradient_accumulation_steps
        return micro_batches * self.per_device_train_batch_size // self.num_generations

    @property
    def optimizer_steps_per_generation(self) -> int:
        """The number of optimizer steps on one generation batch."""
        micro_batches = self.steps_per_generation or self.gradient_accumulation_steps
        return micro_batches * self.num_iterations // self.gradient_accumulation_steps

    def check_processes(self, num_processes: int) -> None:
        """Check that the micro-batches of a step and of a generation batch can be divided among processes.

        Raises:
            ValueError: they cannot. `steps_per_generation` is a multiple of the micro-batches of a step.
        """
        if self.gradient_accumulation_steps % num_processes:
            raise ValueError(
                f"has prompts_per_step x num_generations = {self.prompts_per_step * self.num_generations}, which "
                f"{num_processes} processes with per_device_train_batch_size {self.per_device_train_batch_size} do "
                "not divide; change one of them"
            )

    @model_validator(mode="after")
    def cispo_has_its_cap(self) -> "Training":
        """Refuse CISPO without its cap, for which TRL would take the clip range of the other losses."""
        if self.loss_type == "cispo" and (self.epsilon_high is None or self.epsilon_high < 1):
            raise ValueError(
                f"has loss_type cispo, whose largest ratio is epsilon_high, with epsilon_high {self.epsilon_high}; "
                "set epsilon_high to 1 or more, for example to 5"
            )
        return self

    @model_validator(mode="after")
    def adapter_has_no_dropout(self) -> "Training":
        """Refuse dropout, with which the training forward would not compute the policy that sampled."""
        if self.lora and self.lora.lora_dropout:
            raise ValueError(
                f"has lora.lora_dropout {self.lora.lora_dropout}, with which the log-probabilities of the training "
                "forward would not be those of the policy that sampled; set lora.lora_dropout to 0"
            )
        return self

    @model_validator(mode="after")
    def sampler_reads_the_copy(self) -> "Training":
        """Refuse a copy of the weights for the sampler `generate`, which would not read it."""
        if self.sampling_dtype and self.sampler == "generate":
            raise ValueError(
                f"has sampling_dtype {self.sampling_dtype} with sampler generate, which samples from the "
                "weights themselves; set sampling_dtype to null, or sampler to engine or engine-compiled"
            )
        return self

    @model_validator(mode="after")
    def vllm_reports_log_mu(self) -> "Training":
        """Refuse a temperature at which vLLM does not report the log-probabilities of the behavior policy."""
        if self.sampler == "vllm" and self.fixed_length and self.temperature != 1:
            raise ValueError(
                f"has temperature {self.temperature} with fixed_length and sampler vllm, which reports "
                "log-probabilities at this temperature only after its ban on the EOS tokens; set temperature to 1, "
                "fixed_length to false, or sampler to engine"
            )
        return self

    @model_validator(mode="after")
    def rewards_have_weights(self) -> "Training":
        """Refuse weights that do not belong to one reward function each."""
        if self.reward_weights is not None and len(self.reward_weights) != len(self.reward_funcs or []):
            raise ValueError(
                f"has {len(self.reward_weights)} reward_weights for {len(self.reward_funcs or [])} reward_funcs; "
                "give one weight for each function"
            )
        return self

    @model_validator(mode="after")
    def batch_divides(self) -> "Training":
        """Refuse batches that are not whole numbers of micro-batches, and checkpoints within a generation batch."""
        step = self.prompts_per_step * self.num_generations
        if step % self.per_device_train_batch_size:
            raise ValueError(
                f"has prompts_per_step x num_generations = {step}, which per_device_train_batch_size "
                f"{self.per_device_train_batch_size} does not divide; change one of them"
            )
        if self.steps_per_generation and self.steps_per_generation % self.gradient_accumulation_steps:
            raise ValueError(
                f"has steps_per_generation {self.steps_per_generation}, which is not a multiple of the "
                f"{self.gradient_accumulation_steps} micro-batches of an optimizer step; choose a multiple"
            )
        if self.save_steps % self.optimizer_steps_per_generation:
            raise ValueError(
                f"has save_steps {self.save_steps}, which is not a multiple of the "
                f"{self.optimizer_steps_per_generation} optimizer steps on one generation batch, but a run can resume "
                "exactly only between two generation batches; choose a multiple"
            )
        return self


class Evaluation(Section):
    """The evaluation on benchmarks: pass@1, and pass@k where there are several completions per problem."""

    num_samples: int = key(
        1,
        "n: completions per problem. With more than one, pass@k is reported for k = 2, 4, ... up to n, which requires "
        "a temperature above 0.",
        "restored",
        unit="completions",
        ge=1,
        le=1024,
    )
    temperature: float = key(0.0, "The sampling temperature. 0 means greedy decoding.", "restored", ge=0)
    top_p: float = key(
        1.0,
        "The probability mass of nucleus sampling. 1 means the whole distribution.",
        "restored",
        gt=0,
        le=1,
    )
    max_new_tokens: int = key(3000, "The largest length of a completion.", "restored", unit="tokens", gt=0)
    batch_size: int = key(32, "Completions that are generated at once.", unit="completions", gt=0)
    sampler: Sampler = key("engine", "The sampler of completions, as in `training`.")
    dtype: Dtype = key("bfloat16", "The data type of the weights.")
    seed: Seed = key(0, "The seed of sampling. Greedy decoding does not use it.")

    @model_validator(mode="after")
    def samples_differ(self) -> "Evaluation":
        """Refuse several samples of greedy decoding, which would all be the same."""
        if self.num_samples > 1 and self.temperature == 0:
            raise ValueError(
                f"has num_samples {self.num_samples} at temperature 0, where all samples of a problem are the same; "
                "set a temperature above 0, or num_samples to 1"
            )
        return self


class Analysis(Section):
    """The tables and figures of the report."""

    confidence: float = key(
        0.95, "The confidence level of the intervals; a test is significant below 1 - confidence.", gt=0.5, lt=1
    )
    margin: float = key(
        1.0,
        "The smallest change of the accuracy that matters, in percentage points. A delta that is shown to be smaller "
        "than this, up or down, has the verdict equivalent. The deltas of the paper go from -7.0 to +2.6 points.",
        unit="points",
        gt=0,
    )
    speed_rounds: int = key(
        9,
        "The rounds of the measurement of speed: each samples one batch of completions at every skip ratio, on a "
        "machine that computes nothing else. 0 leaves the measurement out.",
        unit="rounds",
        ge=0,
    )


class Tracking(Section):
    """The trackers that follow a study. They mirror the files of the results, and no result depends on them."""

    uri: str | None = key(
        "sqlite:///results/mlflow.db",
        "The address of the MLflow tracking store. null disables MLflow. On a cluster, give the address of an MLflow "
        "server, because a SQLite file serves a single machine.",
    )
    report_to: list[Literal["tensorboard", "trackio", "wandb"]] = key(
        [],
        "Further trackers that get the metrics of each step. Their packages must be installed. Weights & Biases stays "
        "offline unless WANDB_MODE says otherwise.",
    )

    @field_validator("uri")
    @classmethod
    def uri_holds_no_secret(cls, uri: str | None) -> str | None:
        """Refuse a password in the address, because the config is copied into the results."""
        if uri is not None and re.search("//[^/]+@", uri):
            raise PydanticCustomError(
                "secret", "must not hold a password; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
            )
        return uri


class Processes(Section):
    """How many processes and GPUs a job uses. The names are those of accelerate."""

    gpus: int = key(1, "GPUs of a job, one for each process. 0 means that it runs on the CPU.", unit="GPUs", ge=0)
    distributed: Literal["none", "ddp", "fsdp"] = key(
        "none",
        "How a job uses several processes, each of which computes a part of each batch. `none` is one process on at "
        "most one GPU. With `ddp` each process holds the whole model, and with `fsdp` (FSDP2) a part of the weights, "
        "gradients and optimizer states, and a whole copy of the weights for sampling. An evaluation divides its "
        "problems among processes that hold the whole model. The batches of a step stay the same.",
    )
    num_processes: int | None = key(
        None,
        "Processes of a job. null means one for each GPU. Only a job on the CPU (`gpus: 0`) can have another number.",
        unit="processes",
        gt=0,
    )

    @property
    def count(self) -> int:
        """The number of processes of a job."""
        return 1 if self.distributed == "none" else self.num_processes or self.gpus or 1


class ModelProcesses(Section):
    """The processes and GPUs of the jobs of one model; a key that is left out has the value of `jobs`."""

    gpus: int | None = key(None, "`jobs.gpus` for this model.", unit="GPUs", ge=0)
    distributed: Literal["none", "ddp", "fsdp"] | None = key(None, "`jobs.distributed` for this model.")
    num_processes: int | None = key(None, "`jobs.num_processes` for this model.", unit="processes", gt=0)


class Jobs(Processes):
    """The resources of a job of `sft`, `train` or `evaluate`. A change of these keys reruns nothing."""

    threads: int = key(4, "CPU threads of a job, which its processes share.", unit="threads", gt=0)
    models: dict[Name, ModelProcesses] = key(
        {}, "Models whose jobs use other GPUs or processes, by the name that `grid.model` uses."
    )
    keep_models: bool = key(
        True,
        "Whether the models of warm-ups and trainings are kept. With false, the folder of a model is deleted when all "
        "trainings and evaluations that read it have finished; metrics and records stay.",
    )

    def processes(self, model: str) -> Processes:
        """Return the processes and GPUs of the jobs of a model."""
        own = self.models.get(model, ModelProcesses()).model_dump(exclude_unset=True)
        return Processes(**{name: getattr(self, name) for name in Processes.model_fields} | own)

    def most_gpus(self, models: list[str]) -> int:
        """Return the number of GPUs that a job of any of these models has at most."""
        return max(self.processes(model).gpus for model in models)

    def gpus_key(self, model: str) -> str:
        """Return the key that sets the number of GPUs of the jobs of a model."""
        own = self.models.get(model)
        return f"jobs.models.{model}.gpus" if own and own.gpus is not None else "jobs.gpus"

    @model_validator(mode="after")
    def processes_fit_gpus(self) -> "Jobs":
        """Refuse several GPUs for one process, several processes on one GPU, and `ddp` or `fsdp` with one process."""
        for model in (None, *self.models):
            of = self.processes(model or "")
            name = f" for model {model}" if model else ""
            if of.gpus > 0 and of.num_processes not in (None, of.gpus):
                raise ValueError(
                    f"has num_processes {of.num_processes} with gpus {of.gpus}{name}, but a process has one GPU; "
                    "leave num_processes out"
                )
            if of.distributed == "none" and max(of.gpus, of.num_processes or 1) > 1:
                key_name, value = ("gpus", of.gpus) if of.gpus > 1 else ("num_processes", of.num_processes)
                raise ValueError(
                    f"has {key_name} {value} with distributed none{name}, which is one process; set distributed to "
                    f"ddp or fsdp, or {key_name} to 1"
                )
            if of.distributed != "none" and of.count == 1:
                raise ValueError(
                    f"has distributed {of.distributed} with one process{name}, which has nothing to divide; set gpus "
                    "(on the CPU, num_processes) to 2 or more, or distributed to none"
                )
        return self
