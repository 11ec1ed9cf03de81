"""The cards that a plan can assume: memory, datasheet rates, and the share of these rates that jobs reach."""

from typing import NamedTuple

GIB = 2**30


class Card(NamedTuple):
    """A GPU, or the threads of a CPU.

    A job takes `seconds(...)`: the operations at a share of the peak rate, the bytes at a share of the bandwidth, and
    a fixed time per operation of PyTorch. A GPU works while the process prepares its next operations, so that only
    the longer of the two counts; on a CPU they add up.

    Attributes:
        name: the name of the card in options and in the configuration.
        memory: the memory in bytes; 0 for a CPU, whose memory is not limited by the card.
        flops: dtype -> operations per second of a matrix product, for each thread of a CPU.
        bandwidth: bytes per second.
        link: bytes per second between two cards of a node, in each direction.
        op_seconds: the time to start one operation of PyTorch.
        start_seconds: the time in which a job imports its libraries and initializes the device.
        update_efficiency: the share of `flops` that a forward and backward pass over whole sequences reaches.
        decode_efficiency: the share of `flops` that a decode step reaches, in which matrices have few rows.
        bandwidth_efficiency: the share of `bandwidth` that is reached.
        source: where the rates come from.
    """

    name: str
    memory: int
    flops: dict[str, float]
    bandwidth: float
    link: float
    op_seconds: float
    start_seconds: float
    update_efficiency: float
    decode_efficiency: float
    bandwidth_efficiency: float
    source: str

    @property
    def is_gpu(self) -> bool:
        """Whether the card is a GPU."""
        return self.memory > 0

    def seconds(self, flops: float, traffic: float, ops: float, dtype: str, decoding: bool = False) -> float:
        """Return the time of some work.

        Args:
            flops: operations of matrix products.
            traffic: bytes that are read and written.
            ops: operations of PyTorch that are started.
            dtype: the type of the matrix products.
            decoding: whether the work is that of decode steps.
        """
        efficiency = self.decode_efficiency if decoding else self.update_efficiency
        device = flops / (self.flops[dtype] * efficiency) + traffic / (self.bandwidth * self.bandwidth_efficiency)
        starts = ops * self.op_seconds
        return max(device, starts) if self.is_gpu else device + starts

    def exchange_seconds(self, size: float, processes: int) -> float:
        """Return the time in which `size` bytes reach all of several processes, each of which holds a part."""
        return size * (processes - 1) / processes / (self.link * self.bandwidth_efficiency)

    def on_threads(self, threads: int) -> "Card":
        """Return the card with the rate of several threads of a CPU; a GPU is returned unchanged."""
        if self.is_gpu:
            return self
        return self._replace(flops={dtype: rate * threads for dtype, rate in self.flops.items()})


def gpu(name: str, gigabytes: int, bfloat16: float, float32: float, bandwidth: float, link: float) -> Card:
    """Return a GPU from its datasheet: memory in GB, dense TFLOP/s, bandwidths in GB/s (link: NVLink or PCIe).

    The float32 rate is that without TF32, which PyTorch does not use by default. The efficiencies are
    assumptions: no GPU was at hand when they were chosen.
    """
    rates = {"bfloat16": bfloat16 * 1e12, "float32": float32 * 1e12}
    return Card(
        name,
        int(gigabytes * 0.985 * GIB),
        rates,
        bandwidth * 1e9,
        link * 1e9,
        10e-6,
        25.0,
        0.55,
        0.5,
        0.6,
        "datasheet",
    )


CARDS = {
    card.name: card
    for card in (
        gpu("a100-40gb", 40, 312, 19.5, 1555, 300),
        gpu("a100-80gb", 80, 312, 19.5, 2039, 300),
        gpu("h100", 80, 989, 67, 3350, 450),
        gpu("h200", 141, 989, 67, 4800, 450)._replace(memory=int(139.8 * GIB)),
        gpu("l40s", 48, 362, 91.6, 864, 32),
        gpu("a10", 24, 125, 31.2, 600, 32),
        gpu("l4", 24, 121, 30.3, 300, 32),
        gpu("rtx-4090", 24, 165, 82.6, 1008, 32),
        # The rates are those of one core of an AMD EPYC with AVX-512 (matrix product of 1024 x 1024, copy of 256 MB).
        # The efficiencies and the time of an operation were fitted to the cases of `bench plan` that are marked so.
        Card("cpu", 0, {"float32": 91e9, "bfloat16": 45e9}, 27e9, 5e9, 12e-6, 12.0, 1.0, 0.68, 0.45, "measured"),
    )
}
