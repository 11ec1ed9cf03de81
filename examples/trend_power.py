"""What the trend finds and single comparisons miss: `python examples/trend_power.py trend_power.svg` draws it.

Studies are simulated in which skipping layers costs accuracy in proportion to the share of layers skipped: the grid
of the paper, three mitigations at three skip ratios, with three seeds and three benchmarks of 60 problems. Each study
is judged by three tests at the level 0.05: the slope of the trend, the order of the accuracies, and the best of the
nine comparisons with the baseline after Holm's correction. No model is trained.
"""

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from nested_reft.report.statistics import Floats, accuracy_deltas, holm, macro_average
from nested_reft.report.trend import cell_slope, ordering_test, pooled_trend

SHARES = np.array([0.0, *np.repeat([1 / 28, 3 / 28, 4 / 28], 3)])  # the baseline, and three mitigations at each ratio
SIZES, SEEDS, SEED_SD = (60, 60, 60), 3, 0.1
# The standard deviations of the latent accuracy: what the cells share of a problem's difficulty, what they do not
# share, what an instance changes about a problem, and the sampling of an answer.
SHARED_SD, CELL_SD, INSTANCE_SD, SAMPLE_SD = 1.0, 0.3, 0.4, 0.7
LEVEL = 0.95
TESTS = {"slope of the trend": "o", "order of the accuracies": "s", "best of nine, Holm": "x"}  # name -> marker
SLOPES = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)  # latent accuracy per share of the layers


def draw_cells(
    rng: np.random.Generator,
    sizes: tuple[int, ...],
    cells: int,
    seeds: int,
    seed_sd: float,
    slope: float = 0.0,
    shared_sd: float = 0.0,
) -> tuple[list[Floats], npt.NDArray[np.str_]]:
    """Return the scores (instances, seeds, n) of each cell, and the benchmark (n,) of each problem.

    An answer is right if its latent accuracy is above zero. Cells answer the same problems, whose difficulty they
    share in part.

    Args:
        rng: the source of all draws.
        sizes: the number of problems of each benchmark.
        cells: the number of cells.
        seeds: the number of seeds.
        seed_sd: the standard deviation of the effect of a seed, and of a run.
        slope: the latent accuracy falls by slope x share.
        shared_sd: the standard deviation of what an instance changes about a problem in all cells alike.
    """
    n, instances = sum(sizes), len(SHARES)
    difficulty = np.repeat(np.linspace(-1.0, 1.0, len(sizes)), sizes) + SHARED_SD * rng.normal(size=n)
    shared = shared_sd * rng.normal(size=(instances, 1, n)) if shared_sd else 0.0
    scores = []
    for _ in range(cells):
        latent = difficulty + CELL_SD * rng.normal(size=n) + shared
        latent = latent + INSTANCE_SD * rng.normal(size=(instances, 1, n))
        latent = latent + seed_sd * (rng.normal(size=(1, seeds, 1)) + rng.normal(size=(instances, seeds, 1)))
        latent = latent - slope * SHARES[:, None, None]
        scores.append((latent + SAMPLE_SD * rng.normal(size=(instances, seeds, n)) > 0).astype(float))
    return scores, np.repeat([f"b{index}" for index in range(len(sizes))], sizes)


def true_loss(slope: float) -> float:
    """Return how much accuracy is lost at the largest share, on average over all problems and seeds."""
    spread = np.sqrt(SHARED_SD**2 + CELL_SD**2 + INSTANCE_SD**2 + SAMPLE_SD**2 + 2 * SEED_SD**2)
    means = np.linspace(-1.0, 1.0, len(SIZES))
    return float((ndtr(means / spread) - ndtr((means - slope * SHARES.max()) / spread)).mean())


def power(slope: float, repeats: int, seed: int = 1) -> Floats:
    """Return how often each of TESTS is significant, (3,)."""
    rng, found = np.random.default_rng(seed), np.zeros(len(TESTS))
    for _ in range(repeats):
        (scores,), benchmarks = draw_cells(rng, SIZES, 1, SEEDS, SEED_SD, slope)
        cell = cell_slope(scores, SHARES, benchmarks)
        assert cell is not None
        trend = pooled_trend([cell], benchmarks, LEVEL)
        order = ordering_test([macro_average(scores, benchmarks)], SHARES, resamples=400)
        smallest = holm([delta.p for delta in accuracy_deltas(scores, benchmarks, LEVEL, resamples=10)]).min()
        found += [trend.p < 0.05, order < 0.05, smallest < 0.05]
    return found / repeats


def draw(path: Path, repeats: int) -> None:
    """Draw how often each test finds the loss, against the loss."""
    import matplotlib.pyplot as plt

    from nested_reft.report.figures.common import percent
    from nested_reft.report.style import STYLE

    shares, points = [power(slope, repeats) for slope in SLOPES], [100 * true_loss(slope) for slope in SLOPES]
    for loss, row in zip(points, shares, strict=True):
        print(
            f"loss of {loss:.1f} points:",
            ", ".join(f"{name} {100 * share:.1f}%" for name, share in zip(TESTS, row, strict=True)),
        )
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(5.6, 3.4), layout="constrained")
        for (name, marker), found in zip(TESTS.items(), np.transpose(shares), strict=True):
            error = np.sqrt(found * (1 - found) / repeats)
            axis.errorbar(points, found, 1.96 * error, label=name, marker=marker, markersize=5, linewidth=1.2)
        axis.axhline(0.05, color="0.6", linewidth=0.8, linestyle=":")
        axis.set_xlabel(f"true loss at {SHARES.max():.1%} of the layers skipped, points")
        axis.set_ylabel("studies that find it")
        axis.set_yticks(ticks := [0.0, 0.25, 0.5, 0.75, 1.0], [percent(tick) for tick in ticks])
        axis.legend()
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", type=Path, help="file to draw into, for example trend_power.svg")
    parser.add_argument("--repeats", type=int, default=2000, help="simulated studies per loss (default: 2000)")
    arguments = parser.parse_args()
    draw(arguments.figure, arguments.repeats)
