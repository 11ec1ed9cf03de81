"""The arithmetic of a model's shape: parameters, floating-point operations and bytes, from config.json alone.

The formulas hold for decoder-only models with gated MLPs: Qwen2, Qwen3, Llama, Mistral and their relatives. Torch is
not needed.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

BYTES = {"float32": 4, "bfloat16": 2}

# Models of the hub whose shape is known without a download, by their names there.
QWEN_1_5B: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
QWEN_7B: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}
# The names of the benchmarks for models of these shapes with random weights.
BENCH_SHAPES = {"qwen2.5-1.5b": QWEN_1_5B, "qwen2.5-7b": QWEN_7B}
HUB_SHAPES: dict[str, dict[str, Any]] = {
    f"Qwen/Qwen2.5-{name}": shape
    for size, shape in (("1.5B", QWEN_1_5B), ("7B", QWEN_7B))
    for name in (f"Math-{size}-Instruct", f"Math-{size}", f"{size}-Instruct", size)
}


class ModelShape(NamedTuple):
    """The sizes of a decoder-only language model.

    Attributes:
        num_layers: N.
        hidden_size: W, the width of the residual stream.
        intermediate_size: I, the width of the gated MLP.
        num_heads: H, query heads.
        num_kv_heads: K, heads of keys and values.
        head_dim: D.
        vocab_size: V.
        tied: whether the output projection is the embedding.
        qkv_bias: whether the projections of queries, keys and values have a bias.
        output_bias: whether the projection after attention has a bias.
        qk_norm: whether queries and keys are normalized per head.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied: bool
    qkv_bias: bool
    output_bias: bool
    qk_norm: bool

    @property
    def query_size(self) -> int:
        """H D: the width of the queries."""
        return self.num_heads * self.head_dim

    @property
    def key_size(self) -> int:
        """K D: the width of the keys, and of the values."""
        return self.num_kv_heads * self.head_dim

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """The matrices of a layer by the names of their modules: (inputs, outputs)."""
        width, inner = self.hidden_size, self.intermediate_size
        return {
            "q_proj": (width, self.query_size),
            "k_proj": (width, self.key_size),
            "v_proj": (width, self.key_size),
            "o_proj": (self.query_size, width),
            "gate_proj": (width, inner),
            "up_proj": (width, inner),
            "down_proj": (inner, width),
        }

    @property
    def matrix_parameters(self) -> int:
        """The parameters of the matrices of one layer; each costs two floating-point operations per token."""
        return sum(inputs * outputs for inputs, outputs in self.matrices.values())

    @property
    def layer_parameters(self) -> int:
        """The parameters of one layer."""
        biases = (self.query_size + 2 * self.key_size) * self.qkv_bias + self.hidden_size * self.output_bias
        norms = 2 * self.hidden_size + 2 * self.head_dim * self.qk_norm
        return self.matrix_parameters + biases + norms

    @property
    def embedding_parameters(self) -> int:
        """The parameters of the embedding, and of the output projection."""
        return self.vocab_size * self.hidden_size

    @property
    def parameters(self) -> int:
        """The parameters of the whole model."""
        embeddings = self.embedding_parameters * (1 if self.tied else 2)
        return self.num_layers * self.layer_parameters + embeddings + self.hidden_size

    def adapted(self, targets: Sequence[str]) -> list[tuple[int, int]]:
        """Return the matrices of a layer that get a LoRA adapter.

        Args:
            targets: the ends of their names; `all-linear` stands for all of them.
        """
        return [
            size for name, size in self.matrices.items() if "all-linear" in targets or name.endswith(tuple(targets))
        ]

    def lora_parameters(self, rank: int, targets: Sequence[str]) -> int:
        """Return the parameters of LoRA adapters: rank x (inputs + outputs) for each matrix that has one.

        Args:
            rank: r.
            targets: the ends of the names of the matrices that get an adapter, as for `adapted`.
        """
        return self.num_layers * rank * sum(inputs + outputs for inputs, outputs in self.adapted(targets))

    def layer_flops(self, attended: float) -> float:
        """Return the operations of one layer for one token that attends to `attended` tokens.

        A matrix costs a multiplication and an addition per parameter. Attention costs as much for the scores, and
        again for the weighted sum of the values.
        """
        return 2 * self.matrix_parameters + 4 * self.query_size * attended

    @property
    def lm_head_flops(self) -> float:
        """The operations of the output projection for one token."""
        return 2.0 * self.embedding_parameters

    def forward_flops(self, tokens: float, length: float, scored: float) -> float:
        """Return the operations of a forward pass.

        Args:
            tokens: the tokens of all sequences.
            length: the tokens of a sequence. A token attends to half of them on average.
            scored: the tokens that the output projection is applied to.
        """
        return tokens * self.num_layers * self.layer_flops(length / 2) + scored * self.lm_head_flops

    def kv_bytes(self, rows: int, columns: int, dtype: str) -> int:
        """Return the size of the keys and values of all layers for `rows` sequences of `columns` tokens."""
        return 2 * self.num_layers * rows * columns * self.key_size * BYTES[dtype]


def read_shape(config: Mapping[str, Any]) -> ModelShape | None:
    """Return the shape that a config.json describes, or None for a model that the formulas do not cover.

    Args:
        config: the content of config.json, or of an entry of `HUB_SHAPES`.
    """
    config = config.get("text_config") or config
    if any(config.get(key) for key in ("num_experts", "num_local_experts", "n_routed_experts")):
        return None
    try:
        width, heads = config["hidden_size"], config["num_attention_heads"]
        family = config.get("model_type", "")
        bias = bool(config.get("attention_bias", False))
        return ModelShape(
            num_layers=config["num_hidden_layers"],
            hidden_size=width,
            intermediate_size=config["intermediate_size"],
            num_heads=heads,
            num_kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or width // heads,
            vocab_size=config["vocab_size"],
            # a config.json leaves out what is the default of its family
            tied=config.get("tie_word_embeddings", family.startswith("gemma")),
            qkv_bias=bias or family == "qwen2",
            output_bias=bias and family != "qwen2",
            qk_norm=family.startswith("qwen3"),
        )
    except KeyError:
        return None
