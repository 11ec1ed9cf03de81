"""Which k layers are skipped at a step: a function per strategy, of which `uniform` is the paper's.

Every strategy is a pure function of (seed, step, parameters, calibration), as the uniform draw is, and skips equally
many layers at every step of a run.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from nested_reft.errors import NestingError
from nested_reft.nesting import draw_skipped_layers

# The number of uniformly drawn sets of which `calibrated` takes the best.
CANDIDATES = 4


class Calibration(NamedTuple):
    """What skipping layers does to the policy of a model, measured before its training."""

    layer_kl: Mapping[int, float]  # KL(mu || pi) in nats per token where mu skips this layer alone
    overlap_p5: Mapping[int, float]  # number of layers that mu skips -> 5th percentile over tokens of 1 - TV(mu, pi)


class Parameters(Protocol):
    """The parameters that a strategy may read; the config section `nesting` holds them."""

    strategy: str
    skipped_layers: list[int]
    budget_tau: float


def uniform(
    valid: Sequence[int], k: int, seed: int, step: int, parameters: Parameters, calibration: Calibration
) -> list[int]:
    """Return a uniformly drawn k-subset of the valid layers, as in the paper."""
    return draw_skipped_layers(valid, k, seed, step)


def fixed(
    valid: Sequence[int], k: int, seed: int, step: int, parameters: Parameters, calibration: Calibration
) -> list[int]:
    """Return the layers of `nesting.skipped_layers`, the same at every step.

    Raises:
        NestingError: if these are not k layers, or if one of them may not be skipped.
    """
    layers = sorted(set(parameters.skipped_layers))
    if len(layers) != k:
        raise NestingError(
            f"nesting.skipped_layers names {len(layers)} layers, but the skip ratio asks for {k}; name {k} layers"
        )
    if forbidden := [layer for layer in layers if layer not in valid]:
        raise NestingError(
            f"nesting.skipped_layers names layer {forbidden[0]}, which may not be skipped; "
            f"choose among {', '.join(map(str, valid))}"
        )
    return layers


def calibrated(
    valid: Sequence[int], k: int, seed: int, step: int, parameters: Parameters, calibration: Calibration
) -> list[int]:
    """Return the best of a few uniformly drawn k-subsets: that with the smallest predicted KL(mu || pi).

    The predicted KL of a set is the sum of the KL of its layers alone. The best of a few draws has no scale that would
    have to fit the model, as a temperature has, and the sets stay diverse: each one but the few worst can be drawn.
    The candidates of step t are the uniform sets of the steps 4 t to 4 t + 3, so that no two steps share them.
    """
    draws = [draw_skipped_layers(valid, k, seed, CANDIDATES * step + place) for place in range(CANDIDATES)]
    return min(draws, key=lambda layers: sum(calibration.layer_kl[layer] for layer in layers))


def budget(
    valid: Sequence[int], k: int, seed: int, step: int, parameters: Parameters, calibration: Calibration
) -> list[int]:
    """Return a calibrated set of the largest size up to k whose overlap is at least `nesting.budget_tau`."""
    overlaps = calibration.overlap_p5
    sizes = [size for size in range(1, k + 1) if overlaps[size] >= parameters.budget_tau]
    return calibrated(valid, max(sizes, default=0), seed, step, parameters, calibration)


Strategy = Callable[[Sequence[int], int, int, int, Parameters, Calibration], list[int]]
STRATEGIES: dict[str, Strategy] = {"uniform": uniform, "fixed": fixed, "calibrated": calibrated, "budget": budget}
# Those that read a calibration.
CALIBRATED = ("calibrated", "budget")


def choose_layers(
    valid: Sequence[int],
    k: int,
    seed: int,
    step: int,
    parameters: Parameters,
    calibration: Calibration | None = None,
) -> list[int]:
    """Return the layers to skip at `step` by the strategy of the parameters, sorted: k, or with `budget` up to k.

    Args:
        valid: the layers that may be skipped.
        k: the number of layers that the skip ratio asks for; 0 skips none, whatever the strategy.
        seed: the seed of the run.
        step: the optimizer step.
        parameters: the section `nesting`.
        calibration: the calibration of the model, for the strategies that read one.

    Raises:
        NestingError: if a calibration is missing, or measured other layers or sizes, or if `fixed` names other layers
            than k valid ones.
        ValueError: if k exceeds the number of valid layers.
    """
    if k == 0:
        return []
    known = calibration or Calibration({}, {})
    is_known = known.layer_kl.keys() >= set(valid) and known.overlap_p5.keys() >= set(range(1, k + 1))
    if parameters.strategy in CALIBRATED and not is_known:
        raise NestingError(
            f"nesting.strategy {parameters.strategy} needs a calibration of the layers {valid[0]} to {valid[-1]} and "
            f"of 1 to {k} of them skipped; make one by nested_reft.stages.calibrate.calibrate with the border and the "
            "skip ratio of the training, and pass it as `calibration`"
        )
    return STRATEGIES[parameters.strategy](valid, k, seed, step, parameters, known)
