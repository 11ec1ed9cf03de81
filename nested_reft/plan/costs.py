"""What one job costs: its memory at the peak, its operations, its tokens and its time, by arithmetic.

The numbers follow the code of the stages: TRL 1.16 scores completions in tiles, so that the logits of a batch never
exist at once; transformers keeps a number of vectors per token and layer for the backward pass; the roll-out engine
keeps its KV buffers between steps. Nothing is imported that computes.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from nested_reft.config.sections import Evaluation, Optimization, Sft, Training
from nested_reft.model.shape import BYTES, ModelShape
from nested_reft.plan.cards import Card

# TRL scores this many tokens against this many entries of the vocabulary at once (`ChunkedLogProbFunction`).
TILE_TOKENS, TILE_VOCABULARY = 4096, 32768
# float32 tiles that exist at once in the backward pass of the loss on a CPU; a GPU has one tile, in the type of the
# forward pass, which a kernel changes in place.
CPU_TILES = 7
# Operations of PyTorch per layer: in a forward pass, in a decode step of the engine, and in a compiled one.
FORWARD_OPS, DECODE_OPS, COMPILED_OPS = 45, 50, 6
# How often the loss reads or writes a logit: by operations of PyTorch on a CPU, by a kernel on a GPU.
CPU_TILE_ACCESSES, GPU_TILE_ACCESSES = 98, 6
# Outputs of each matrix with an adapter that are freed between tensors that stay: on a CPU, the heap keeps their room.
HEAP_OUTPUTS = 2
# Operations of PyTorch that sample a token, and that update one tensor of weights.
SAMPLING_OPS, OPTIMIZER_OPS = 40, 5
# Tensors of weights in a layer.
TENSORS_PER_LAYER = 12
# Bytes per token of the vocabulary that sampling reads and writes: logits, softmax, a cumulative sum in float64.
SAMPLING_BYTES = 48
# Numbers that AdamW and the clipping of gradients read and write for each trained parameter.
OPTIMIZER_ACCESSES = 12
# The seconds that one answer is graded in, and a step logs in.
GRADE_SECONDS, STEP_SECONDS = 1e-3, 0.02
# Bytes per second of the disk that checkpoints are written to.
DISK_BANDWIDTH = 1e9
# What a process holds on a GPU outside of its tensors: the CUDA context and the libraries' workspaces.
CUDA_CONTEXT = 600 * 2**20
# The KV buffers of the engine grow by this factor when a batch has longer prompts than those before it.
KV_GROWTH = 1.5


class Memory(NamedTuple):
    """The parts of a process's memory in one phase, in bytes.

    Attributes:
        weights: the weights, with copies in another type.
        gradients: the gradients of the trained parameters.
        optimizer: the state of the optimizer, and what its step needs for a moment.
        activations: what the forward pass keeps for the backward pass, and the gradients of one layer.
        logits: the tiles of logits, or the logits of a decode step, and the gradient of the output projection.
        kv_cache: the keys and values.
        fixed: what a process holds besides: the CUDA context.
    """

    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    logits: float = 0.0
    kv_cache: float = 0.0
    fixed: float = 0.0

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return sum(self)


class Cost(NamedTuple):
    """The cost of a job.

    Attributes:
        memory: phase -> memory of one process.
        seconds: phase -> time of the whole job in seconds.
        flops: operations of matrix products, over all processes.
        tokens: tokens that are read and sampled, over all processes.
        gpus: the number of GPUs that the job holds.
        parameters: the parameters of the model.
        trained: the parameters that are trained; 0 for an evaluation.
    """

    memory: dict[str, Memory]
    seconds: dict[str, float]
    flops: float
    tokens: float
    gpus: int
    parameters: int
    trained: int

    @property
    def peak_phase(self) -> str:
        """The phase with the largest memory."""
        return max(self.memory, key=lambda phase: self.memory[phase].total)

    @property
    def peak(self) -> Memory:
        """The memory of that phase."""
        return self.memory[self.peak_phase]

    @property
    def wall_seconds(self) -> float:
        """The time of the job."""
        return sum(self.seconds.values())


class Lengths(NamedTuple):
    """Lengths of texts in tokens: the mean, the longest of a batch on average, and the longest of all."""

    mean: float
    typical: float
    longest: float


class Layout(NamedTuple):
    """How a job is spread over processes.

    Attributes:
        processes: the number of processes, one per GPU.
        sharded: whether weights, gradients and optimizer state are sharded over them (FSDP).
    """

    processes: int = 1
    sharded: bool = False

    @property
    def shards(self) -> int:
        """The number of parts that the state of the model is split into."""
        return self.processes if self.sharded else 1


ONE_PROCESS = Layout()


def trained_parameters(shape: ModelShape, settings: Optimization) -> int:
    """Return the number of parameters that are trained: those of the LoRA adapter if there is one."""
    lora = settings.lora
    return shape.parameters if lora is None else shape.lora_parameters(lora.r, lora.target_modules)


def compute_dtype(settings: Optimization) -> str:
    """Return the type of the matrix products of a forward and backward pass."""
    return "bfloat16" if settings.bf16 else settings.dtype


def layer_activation_bytes(shape: ModelShape, settings: Optimization) -> float:
    """Return the bytes per token that a layer keeps for its backward pass.

    The counts are those of transformers' layers in PyTorch without fusion. Each of the two norms keeps its input and
    the normalized input; attention keeps queries, keys and values (repeated for all heads) and its output, twice; the
    MLP keeps the outputs of both projections, of the activation and of their product. Under autocast, each matrix
    keeps its own cast of its input.

    Args:
        shape: the shape of the model.
        settings: the section `sft` or `training`.
    """
    width, inner, query = shape.hidden_size, shape.intermediate_size, shape.query_size
    compute = compute_dtype(settings)
    stream, size = BYTES[settings.dtype], BYTES[compute]
    if settings.dtype == compute == "float32":
        norms = 2 * 3 * width * 4
    elif settings.dtype == "float32":
        norms = 2 * 2 * width * 4 + 5 * width * size
    else:
        norms = 2 * width * (4 + 2 * stream)
    attention = size * (5 * query)
    mlp = size * 4 * inner
    lora = settings.lora
    adapters = 0
    if lora:  # the frozen norms do not keep their normalized inputs
        adapters = size * 2 * lora.r * len(shape.adapted(lora.target_modules)) - 2 * width * 4
    return norms + attention + mlp + adapters


def update_memory(
    shape: ModelShape,
    settings: Optimization,
    length: float,
    scored: float,
    card: Card,
    layout: Layout = ONE_PROCESS,
    kv_cache: float = 0.0,
) -> dict[str, Memory]:
    """Return the memory of the forward and backward pass, and of the optimizer step.

    Args:
        shape: the shape of the model.
        settings: the section `sft` or `training`.
        length: the tokens of the longest sequence.
        scored: the tokens of a sequence that the loss is on.
        card: the card.
        layout: the processes.
        kv_cache: the size of KV buffers that stay allocated.
    """
    compute, lora = compute_dtype(settings), settings.lora
    stored, size, batch = BYTES[settings.dtype], BYTES[compute], settings.per_device_train_batch_size
    tokens = batch * length
    trained = trained_parameters(shape, settings)
    state = 2 if settings.optim == "paged_adamw_8bit" else 2 * stored
    fixed = CUDA_CONTEXT if card.is_gpu else 0.0
    weights = (shape.parameters + (trained if lora else 0)) * stored / layout.shards
    if layout.sharded:  # the layer that computes and the next one are gathered, and so is the output projection
        weights += (2 * shape.layer_parameters + shape.embedding_parameters) * size
    model = Memory(
        weights=weights,
        gradients=trained * stored / layout.shards,
        optimizer=trained * state / layout.shards,
        kv_cache=kv_cache,
        fixed=fixed,
    )
    per_layer = tokens * layer_activation_bytes(shape, settings)
    casts = shape.num_layers * shape.matrix_parameters * size if compute != settings.dtype else 0.0
    if settings.gradient_checkpointing:
        casts /= shape.num_layers
        activations = shape.num_layers * tokens * shape.hidden_size * stored + per_layer
    else:
        activations = shape.num_layers * per_layer
    activations += tokens * (3 * shape.intermediate_size + 4 * shape.hidden_size) * size  # gradients of one layer
    if lora and not card.is_gpu:
        layers = 1 if settings.gradient_checkpointing else shape.num_layers
        outputs = sum(output for _, output in shape.adapted(lora.target_modules))
        activations += HEAP_OUTPUTS * layers * tokens * outputs * size
    rows = min(TILE_TOKENS, batch * (scored if card.is_gpu else length))
    tile = rows * min(TILE_VOCABULARY, shape.vocab_size)
    logits = rows * TILE_VOCABULARY * size if card.is_gpu else CPU_TILES * tile * 4
    if lora is None:  # the gradients of the output projection and of the embedding, before they are added up
        logits += shape.embedding_parameters * (4 + stored)
    update = model._replace(activations=activations + casts, logits=logits)
    temporary = trained * stored / layout.shards if card.is_gpu else shape.embedding_parameters * stored
    return {"update": update, "optimizer": model._replace(optimizer=model.optimizer + temporary)}


def kv_columns(prompt: Lengths, new_tokens: int, card: Card, grows: bool) -> int:
    """Return the columns of the engine's KV buffers: prompt and completion, in whole blocks, and one more block.

    Args:
        prompt: the lengths of prompts.
        new_tokens: the longest completion.
        card: the card, on which the size of a block depends.
        grows: whether later batches may have longer prompts, for which the buffers grow by half.
    """
    block = 64 if card.is_gpu else 16
    columns = prompt.longest + new_tokens
    if grows and prompt.longest > prompt.typical:
        columns = max(columns, KV_GROWTH * (prompt.typical + new_tokens))
    return int(-(-columns // block) + 1) * block


def decode_seconds(
    shape: ModelShape,
    card: Card,
    rows: int,
    attended: float,
    dtype: str,
    sampler: str,
    num_skipped: int = 0,
) -> float:
    """Return the time in which one token of each of `rows` sequences is sampled.

    Args:
        shape: the shape of the model.
        card: the card.
        rows: B, the sequences that are decoded at once.
        attended: the tokens that a token attends to, on average.
        dtype: the type of the weights and of the KV cache.
        sampler: the name of the sampler. vLLM counts as the engine until it is measured.
        num_skipped: k, the layers that are skipped.
    """
    layers, size = shape.num_layers - num_skipped, BYTES[dtype]
    flops = rows * (layers * shape.layer_flops(attended) + shape.lm_head_flops)
    weights = (layers * shape.layer_parameters + shape.embedding_parameters) * size
    keys_and_values = 2 * layers * rows * attended * shape.key_size * size
    traffic = (
        weights + keys_and_values * (3 if sampler == "generate" else 1) + rows * shape.vocab_size * SAMPLING_BYTES
    )
    ops = layers * (COMPILED_OPS if sampler == "engine-compiled" else DECODE_OPS)
    ops += SAMPLING_OPS * (2 if sampler == "generate" else 1)
    return card.seconds(flops, traffic, ops, dtype, decoding=True)


def update_seconds(
    shape: ModelShape,
    settings: Optimization,
    sequences: float,
    length: float,
    scored: float,
    card: Card,
) -> tuple[float, float]:
    """Return the time and the operations of the forward and backward passes over some sequences.

    Args:
        shape: the shape of the model.
        settings: the section `sft` or `training`.
        sequences: the number of sequences of one process.
        length: the tokens of a sequence, padding included.
        scored: the tokens of a sequence that the loss is on.
        card: the card.
    """
    compute = compute_dtype(settings)
    tokens = sequences * length
    on_head = sequences * scored if card.is_gpu else tokens
    # once forward, once for the gradients of inputs, once for those of weights, and once more to recompute
    passes = 1 + (1 if settings.lora else 2) + settings.gradient_checkpointing
    head_passes = 3 if settings.lora else 4  # the tiles of logits are always computed twice
    body = shape.forward_flops(tokens, length, 0)
    flops = passes * body + head_passes * on_head * shape.lm_head_flops
    traffic = tokens * shape.num_layers * layer_activation_bytes(shape, settings) * 2 * passes
    accesses = GPU_TILE_ACCESSES * BYTES[compute] if card.is_gpu else CPU_TILE_ACCESSES * 4
    traffic += on_head * shape.vocab_size * accesses
    micro_batches = sequences / settings.per_device_train_batch_size
    traffic += micro_batches * shape.parameters * BYTES[settings.dtype] * passes
    ops = micro_batches * shape.num_layers * FORWARD_OPS * passes * (1.5 if settings.lora else 1)
    return card.seconds(flops, traffic, ops, compute), flops


def exchange_seconds(
    shape: ModelShape, settings: Sft | Training, micro_batches: float, card: Card, layout: Layout
) -> float:
    """Return the time in which processes exchange gradients, and with FSDP also weights, during a job.

    Args:
        shape: the shape of the model.
        settings: the section `sft` or `training`.
        micro_batches: the micro-batches of one process in the whole job.
        card: the card.
        layout: the processes.
    """
    if layout.processes == 1:
        return 0.0
    weights = shape.parameters * BYTES[settings.dtype]
    gradients = trained_parameters(shape, settings) * BYTES[settings.dtype]
    if layout.sharded:  # weights are gathered for each forward and backward pass, and gradients are reduced
        return micro_batches * card.exchange_seconds(2 * weights + gradients, layout.processes)
    steps = micro_batches * layout.processes / settings.gradient_accumulation_steps
    return steps * card.exchange_seconds(2 * gradients, layout.processes)


def optimizer_seconds(shape: ModelShape, settings: Optimization, trained: int, card: Card, shards: int) -> float:
    """Return the time of one optimizer step."""
    traffic = OPTIMIZER_ACCESSES * trained / shards * BYTES[settings.dtype]
    ops = shape.num_layers * TENSORS_PER_LAYER * (OPTIMIZER_OPS if not card.is_gpu else 1)
    return card.seconds(0.0, traffic, ops, settings.dtype)


def checkpoint_seconds(shape: ModelShape, settings: Optimization, trained: int, steps: int) -> float:
    """Return the time in which all checkpoints, and the model at the end, are written."""
    size = BYTES[settings.dtype]
    one = 3 * trained * size  # the trained weights and both moments of Adam
    return (math.ceil(steps / settings.save_steps) * one + shape.parameters * size) / DISK_BANDWIDTH


def start_seconds(shape: ModelShape, dtype: str, card: Card) -> float:
    """Return the time until a job has imported its libraries and read its model."""
    return card.start_seconds + shape.parameters * BYTES[dtype] / DISK_BANDWIDTH


def sft_cost(
    shape: ModelShape,
    settings: Sft,
    rows: int,
    text: Lengths,
    solution: float,
    card: Card,
    layout: Layout = ONE_PROCESS,
) -> Cost:
    """Return the cost of a warm-up.

    Args:
        shape: the shape of the model.
        settings: the section `sft`.
        rows: the size of the training set.
        text: the lengths of prompt and solution together.
        solution: the mean length of a solution.
        card: the card.
        layout: the processes.
    """
    trained = trained_parameters(shape, settings)
    steps = math.ceil(settings.num_train_epochs * math.ceil(rows / settings.batch_size))
    length, longest = (min(settings.max_length, tokens) for tokens in (text.typical, text.longest))
    sequences = steps * settings.batch_size / layout.processes
    micro_batches = sequences / settings.per_device_train_batch_size
    update, flops = update_seconds(shape, settings, sequences, length, solution, card)
    seconds = {
        "start": start_seconds(shape, settings.dtype, card),
        "update": update,
        "optimizer": steps * optimizer_seconds(shape, settings, trained, card, layout.shards),
        "exchange": exchange_seconds(shape, settings, micro_batches, card, layout),
        "other": steps * STEP_SECONDS,
        "checkpoints": checkpoint_seconds(shape, settings, trained, steps),
    }
    scored = min(longest, solution * longest / text.mean)
    memory = update_memory(shape, settings, longest, scored, card, layout)
    tokens = steps * settings.batch_size * min(settings.max_length, text.mean)
    return Cost(memory, seconds, flops * layout.processes, tokens, gpus_of(card, layout), shape.parameters, trained)


def prefilled_rows(settings: Training, rows: int) -> float:
    """Return the number of prompts that a roll-out of this many completions reads."""
    return rows / (1 if settings.sampler == "generate" else settings.num_generations)


def rollout_cost(
    shape: ModelShape, settings: Training, prompt: Lengths, rows: int, num_skipped: int, card: Card
) -> tuple[float, float]:
    """Return the seconds and the operations of one roll-out of a training, of this many completions."""
    dtype, new_tokens = settings.sampling_dtype or settings.dtype, settings.max_completion_length
    attended = prompt.mean + new_tokens / 2
    decode = decode_seconds(shape, card, rows, attended, dtype, settings.sampler, num_skipped)
    flops = shape.forward_flops(prefilled_rows(settings, rows) * prompt.mean, prompt.mean, 0)
    prefill = card.seconds(flops, 0.0, shape.num_layers * FORWARD_OPS, dtype)
    layers = shape.num_layers - num_skipped
    flops += rows * new_tokens * (layers * shape.layer_flops(attended) + shape.lm_head_flops)
    return prefill + new_tokens * decode, flops


def mixture_cost(
    shape: ModelShape, settings: Training, prompt: Lengths, rows: int, whole_rows: int, num_skipped: int, card: Card
) -> tuple[float, float]:
    """Return the seconds and the operations of a roll-out of which the whole model samples some completions.

    Args:
        shape: the shape of the model.
        settings: the section `training`.
        prompt: the lengths of prompts.
        rows: the completions of the nested model.
        whole_rows: those of the whole model, which one forward of the nested model scores.
        num_skipped: k, the layers that the nested model skips.
        card: the card.
    """
    if not whole_rows:
        return rollout_cost(shape, settings, prompt, rows, num_skipped, card)
    nested, of_nested = rollout_cost(shape, settings, prompt, rows, num_skipped, card)
    whole, of_whole = rollout_cost(shape, settings, prompt, whole_rows, 0, card)
    length, layers = prompt.mean + settings.max_completion_length, shape.num_layers - num_skipped
    scoring = shape.forward_flops(whole_rows * length, length, whole_rows * settings.max_completion_length)
    scoring *= layers / shape.num_layers
    seconds = card.seconds(scoring, 0.0, layers * FORWARD_OPS, settings.dtype)
    return nested + whole + seconds, of_nested + of_whole + scoring


def rollout_memory(shape: ModelShape, settings: Training, prompt: Lengths, rows: int) -> dict[str, float]:
    """Return the activations and the logits of a roll-out, in bytes."""
    size = BYTES[settings.sampling_dtype or settings.dtype]
    read = prefilled_rows(settings, rows) * prompt.longest
    return {
        "activations": read * (4 * shape.hidden_size + 3 * shape.intermediate_size) * size,
        "logits": rows * shape.vocab_size * SAMPLING_BYTES / 2,
    }


def measure_speed_cost(
    shape: ModelShape,
    settings: Training,
    rounds: int,
    prompt: Lengths,
    num_skipped: Sequence[int],
    card: Card,
    layout: Layout = ONE_PROCESS,
) -> Cost:
    """Return the cost of a measurement of speed, which is that of one process and has one round to warm up.

    Args:
        shape: the shape of the model.
        settings: the section `training`.
        rounds: the number of rounds.
        prompt: the lengths of prompts.
        num_skipped: the numbers of layers that the roll-outs of a round skip; 0 is one of them.
        card: the card.
        layout: the processes of a training, which share a batch.
    """
    rows, dtype = settings.prompts_per_generation * settings.num_generations // layout.processes, settings.dtype
    costs = [rollout_cost(shape, settings, prompt, rows, k, card) for k in num_skipped]
    sampling_dtype = settings.sampling_dtype or dtype
    copy = shape.parameters * BYTES[sampling_dtype] if sampling_dtype != dtype else 0
    columns = kv_columns(prompt, settings.max_completion_length, card, grows=True)
    memory = Memory(
        weights=shape.parameters * BYTES[dtype] + copy,
        kv_cache=shape.kv_bytes(rows, columns, sampling_dtype),
        fixed=CUDA_CONTEXT if card.is_gpu else 0.0,
        **rollout_memory(shape, settings, prompt, rows),
    )
    seconds = {"start": start_seconds(shape, dtype, card)}
    seconds["generate"] = (rounds + 1) * sum(seconds for seconds, _ in costs)
    flops = (rounds + 1) * sum(flops for _, flops in costs)
    tokens = (rounds + 1) * len(costs) * rows * (prompt.mean + settings.max_completion_length)
    return Cost({"generate": memory}, seconds, flops, tokens, gpus_of(card, ONE_PROCESS), shape.parameters, 0)


def train_cost(
    shape: ModelShape,
    settings: Training,
    prompt: Lengths,
    num_skipped: int,
    card: Card,
    layout: Layout = ONE_PROCESS,
    whole_share: float = 0.0,
) -> Cost:
    """Return the cost of a training.

    Args:
        shape: the shape of the model.
        settings: the section `training`.
        prompt: the lengths of prompts.
        num_skipped: k, the layers that roll-outs skip.
        card: the card.
        layout: the processes.
        whole_share: the share of the completions that the whole model samples.
    """
    trained, new_tokens = trained_parameters(shape, settings), settings.max_completion_length
    dtype = settings.sampling_dtype or settings.dtype
    rows = settings.prompts_per_generation * settings.num_generations // layout.processes
    samplings = settings.max_steps / settings.optimizer_steps_per_generation
    sequences = settings.max_steps * settings.prompts_per_step * settings.num_generations / layout.processes

    length = prompt.typical + new_tokens
    update, flops = update_seconds(shape, settings, sequences, length, new_tokens, card)
    whole_rows = round(whole_share * rows) if num_skipped else 0
    sampling, sampling_flops = mixture_cost(shape, settings, prompt, rows - whole_rows, whole_rows, num_skipped, card)
    exchange = exchange_seconds(shape, settings, sequences / settings.per_device_train_batch_size, card, layout)
    if layout.sharded:  # the weights are gathered for each sampling
        exchange += samplings * card.exchange_seconds(shape.parameters * BYTES[settings.dtype], layout.processes)
    scoring = rows * GRADE_SECONDS
    if settings.optimizer_steps_per_generation > 1:  # TRL scores the batch that later optimizer steps use again
        forward = shape.forward_flops(rows * length, length, rows * new_tokens)
        scoring += card.seconds(forward, 0.0, shape.num_layers * FORWARD_OPS, dtype)
    seconds = {
        "start": start_seconds(shape, settings.dtype, card),
        "generate": samplings * sampling,
        "score": samplings * scoring,
        "update": update,
        "optimizer": settings.max_steps * optimizer_seconds(shape, settings, trained, card, layout.shards),
        "exchange": exchange,
        "other": settings.max_steps * STEP_SECONDS,
        "checkpoints": checkpoint_seconds(shape, settings, trained, settings.max_steps),
    }

    columns = kv_columns(prompt, new_tokens, card, grows=True)
    kv_cache = shape.kv_bytes(rows, columns, dtype)
    # Where weights are sharded, a process samples from a whole copy, which it keeps. vLLM has a copy of its own.
    has_copy = dtype != settings.dtype or layout.sharded
    num_copies = 1 + layout.sharded if settings.sampler == "vllm" else int(has_copy)
    if whole_rows and dtype != settings.dtype:
        num_copies += 1  # the whole model has a sampler of its own
    copy = num_copies * shape.parameters * BYTES[dtype]
    keeps = settings.sampler != "generate"
    memory = update_memory(
        shape,
        settings,
        prompt.longest + new_tokens,
        new_tokens,
        card,
        layout,
        kv_cache if keeps else 0.0,
    )
    memory = {phase: parts._replace(weights=parts.weights + copy) for phase, parts in memory.items()}
    memory["generate"] = memory["update"]._replace(
        gradients=0.0, kv_cache=kv_cache, **rollout_memory(shape, settings, prompt, rows)
    )
    tokens = sequences * layout.processes * (prompt.mean + new_tokens)
    flops = (flops + samplings * sampling_flops) * layout.processes
    return Cost(memory, seconds, flops, tokens, gpus_of(card, layout), shape.parameters, trained)


def evaluate_cost(
    shape: ModelShape,
    settings: Evaluation,
    problems: int,
    prompt: Lengths,
    completion: float,
    card: Card,
    layout: Layout = ONE_PROCESS,
) -> Cost:
    """Return the cost of an evaluation.

    Args:
        shape: the shape of the model.
        settings: the section `evaluation`.
        problems: the problems of all benchmarks.
        prompt: the lengths of prompts.
        completion: the mean length of a completion.
        card: the card.
        layout: the processes, each of which answers a part of the problems.
    """
    completions = math.ceil(problems * settings.num_samples / layout.processes)
    rows = min(settings.batch_size, completions)
    attended = prompt.mean + completion / 2
    # All rows are busy until no completion waits; then the last ones end.
    steps = completions * completion / rows + settings.max_new_tokens - completion
    decode = decode_seconds(shape, card, rows, attended, settings.dtype, settings.sampler)
    prefill_flops = shape.forward_flops(completions * prompt.mean, prompt.mean, 0)
    flops = prefill_flops + completions * completion * (
        shape.num_layers * shape.layer_flops(attended) + shape.lm_head_flops
    )
    prefill_ops = completions / max(1, rows) * shape.num_layers * FORWARD_OPS
    seconds = {
        "start": start_seconds(shape, settings.dtype, card),
        "generate": steps * decode + card.seconds(prefill_flops, 0.0, prefill_ops, settings.dtype),
        "score": completions * GRADE_SECONDS,
    }
    size = BYTES[settings.dtype]
    columns = kv_columns(prompt, settings.max_new_tokens, card, grows=False)
    memory = Memory(
        weights=shape.parameters * size,
        activations=rows * prompt.longest * (4 * shape.hidden_size + 3 * shape.intermediate_size) * size,
        logits=rows * shape.vocab_size * SAMPLING_BYTES / 2,
        kv_cache=shape.kv_bytes(rows, columns, settings.dtype),
        fixed=CUDA_CONTEXT if card.is_gpu else 0.0,
    )
    tokens = layout.processes * completions * (prompt.mean + completion)
    return Cost(
        {"generate": memory}, seconds, flops * layout.processes, tokens, gpus_of(card, layout), shape.parameters, 0
    )


def gpus_of(card: Card, layout: Layout) -> int:
    """Return the number of GPUs that a job holds."""
    return layout.processes if card.is_gpu else 0
