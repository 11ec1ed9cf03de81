"""The uncertainty of results: intervals and paired tests for accuracies and their deltas.

Pure functions of arrays. A score belongs to a problem and is in [0, 1]: the share of its samples that are correct, so
0 or 1 with one sample. The accuracy of a benchmark is the mean score of its problems. The macro average is the
unweighted mean over benchmarks, whatever their sizes. `docs/concepts/statistics.md` explains the choice of each
method and reports the coverage of its intervals.
"""

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special

from nested_reft.report.clusters import Codes, variance_of_mean
from nested_reft.report.variance import Estimates, add, problem_variance, satterthwaite, variance_between_problems

Floats = npt.NDArray[np.float64]

RESAMPLES = 10_000
ROUNDING = 1e-12  # a share, or a standard error of shares, below this is zero but for rounding
LARGE_BENCHMARK = 100  # problems, from which on Wilson's interval describes an accuracy


def wilson_interval(accuracy: float, n: float, confidence: float) -> tuple[float, float]:
    """Return Wilson's score interval of a share of `n` independent trials; `n` need not be whole."""
    z = special.ndtri(0.5 + confidence / 2)
    center = (accuracy + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(accuracy * (1 - accuracy) / n + z**2 / (4 * n**2))
    return max(0.0, float(center - half)), min(1.0, float(center + half))


def effective_n(scores: Floats) -> float:
    """Return the effective sample size of the scores (n,).

    With one sample per problem it is the number of problems. Several samples of one problem are not independent of
    each other, so they count for less than the same number of problems.
    """
    mean, variance = scores.mean(), scores.var()
    return float(len(scores) * mean * (1 - mean) / variance) if variance > 0 else float(len(scores))


def exact_interval(accuracy: float, n: float, confidence: float) -> tuple[float, float]:
    """Return the exact interval of a share of `n` independent trials (Clopper and Pearson, 1934), whole or not."""
    right, tail = accuracy * n, (1 - confidence) / 2
    low = special.betaincinv(right, n - right + 1, tail) if right > 0 else 0.0
    high = special.betaincinv(right + 1, n - right, 1 - tail) if right < n else 1.0
    return float(low), float(high)


def accuracy_interval(
    scores: Floats, samples: int, confidence: float, clusters: Codes | None = None
) -> tuple[float, float]:
    """Return the interval of the accuracy on one benchmark, over the choice of problems and the sampling of answers.

    Wilson's interval contains the true accuracy in 95 % of the cases on average over accuracies, but less often for
    some of them, above all on a small benchmark. There the interval is the exact one, with the effective sample size.
    The variance between few problems may be too small by chance. The effective sample size is therefore computed with
    two problems more: one with only right samples and one with only wrong ones.

    Args:
        scores: the share of right samples per problem, (n,).
        samples: completions per problem.
        confidence: the level of the interval.
        clusters: the cluster of each problem, (n,), or None if each problem is one of its own. Clusters make the
            effective sample size smaller, down to their number where all samples are right or all are wrong.
    """
    mean, problems = float(scores.mean()), len(scores)
    if clusters is not None:
        number, variance = len(np.unique(clusters)), variance_of_mean(scores, clusters)
        trials = min(effective_n(scores), mean * (1 - mean) / variance) if variance > ROUNDING**2 else number
        return (wilson_interval if number >= LARGE_BENCHMARK else exact_interval)(mean, trials, confidence)
    if problems >= LARGE_BENCHMARK:
        return wilson_interval(mean, effective_n(scores), confidence)
    if samples == 1:
        return exact_interval(mean, problems, confidence)
    with_two_more = np.concatenate([scores, [0.0, 1.0]])
    trials = effective_n(with_two_more) * problems / len(with_two_more)
    return exact_interval(mean, min(trials, problems * samples), confidence)


def pass_at_k(correct: npt.ArrayLike, n: int, k: int) -> Floats:
    """Return the unbiased estimate of pass@k per problem, 1 - C(n-c, k) / C(n, k) (Chen et al., 2021).

    Args:
        correct: c, the number of correct samples of each problem, (problems,).
        n: samples per problem.
        k: the number of samples of which one has to be correct.

    Raises:
        ValueError: if k exceeds n.
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} cannot be estimated from {n} samples per problem; take k from 1 to {n}")
    failing: Floats = special.comb(n - np.asarray(correct), k) / special.comb(n, k)
    return 1 - failing


def macro_average(scores: Floats, benchmarks: npt.NDArray[np.str_]) -> Floats:
    """Return the unweighted mean over benchmarks of the means of the scores (..., n) over their problems."""
    means = [scores[..., benchmarks == name].mean(axis=-1) for name in np.unique(benchmarks)]
    average: Floats = np.mean(means, axis=0)
    return average


def bootstrap_macro_averages(
    scores: Floats, benchmarks: npt.NDArray[np.str_], resamples: int = RESAMPLES, seed: int = 0
) -> Floats:
    """Return macro averages (resamples, m) of problems drawn with replacement within each benchmark.

    Only a few scores are distinct. Drawing the count of each from a multinomial is equivalent to drawing problems,
    and much faster.

    Args:
        scores: (n, m): m scores of each problem, which are drawn together.
        benchmarks: the benchmark of each problem, (n,).
        resamples: the number of resamples.
        seed: the seed of the resampling.
    """
    rng = np.random.default_rng(seed)
    names = np.unique(benchmarks)
    total = np.zeros((resamples, scores.shape[1]))
    for name in names:
        distinct, counts = np.unique(scores[benchmarks == name], axis=0, return_counts=True)
        n = counts.sum()
        total += rng.multinomial(n, counts / n, size=resamples) @ distinct / n
    return total / len(names)


def problem_interval(
    scores: Floats,
    benchmarks: npt.NDArray[np.str_],
    confidence: float,
    resamples: int = RESAMPLES,
    clusters: Codes | None = None,
) -> tuple[float, float]:
    """Return the interval of the macro average of scores (n,), over the sampling of problems alone.

    It is the percentile interval of a bootstrap; for problems in clusters (n,), Student's.
    """
    if clusters is not None:
        mean = float(macro_average(scores, benchmarks))
        found = variance_between_problems(scores, benchmarks, clusters)
        variance = float(found.variances.sum())
        half = float(special.stdtrit(satterthwaite(variance, found), 0.5 + confidence / 2)) * variance**0.5
        return max(0.0, mean - half), min(1.0, mean + half)
    drawn = bootstrap_macro_averages(scores[:, None], benchmarks, resamples)[:, 0]
    low, high = np.quantile(drawn, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def median_interval(
    values: npt.ArrayLike, confidence: float, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile interval of the median of values (n,), by resampling them."""
    values = np.asarray(values, dtype=float)
    drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.quantile(np.median(values[drawn], axis=1), [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


@cache  # a large study has the same two numbers many times
def mcnemar_test(only_instance: int, only_baseline: int) -> float:
    """Return the two-sided p of McNemar's exact test, from the numbers of problems that only one of the two solves."""
    from scipy import stats  # takes half a second to import, and an evaluation needs only Wilson's interval

    discordant = only_instance + only_baseline
    return float(stats.binomtest(only_instance, discordant).pvalue) if discordant else 1.0


def sign_flip_test(
    differences: Floats, benchmarks: npt.NDArray[np.str_], resamples: int = RESAMPLES, seed: int = 0
) -> float:
    """Return the two-sided p of the macro average of paired differences (n,).

    If the instance did not differ from the baseline, each difference would be equally likely to have the opposite
    sign. The p is the share of random sign changes whose macro average is at least as far from zero as the observed
    one. With one benchmark and one sample this estimates the p of McNemar's exact test.
    """
    rng = np.random.default_rng(seed)
    names = np.unique(benchmarks)
    flipped = np.zeros(resamples)
    for name in names:
        in_benchmark = differences[benchmarks == name]
        sizes, counts = np.unique(np.abs(in_benchmark[in_benchmark != 0]), return_counts=True)
        for size, count in zip(sizes, counts, strict=True):
            flipped += size * (2 * rng.binomial(count, 0.5, size=resamples) - count) / len(in_benchmark) / len(names)
    observed = abs(float(macro_average(differences, benchmarks)))
    return float((1 + (np.abs(flipped) >= observed - ROUNDING).sum()) / (1 + resamples))


def holm(p: npt.ArrayLike) -> Floats:
    """Return p (m,) adjusted by Holm (1979) for the number of tests; NaN marks a test that was not made."""
    p = np.asarray(p, dtype=float)
    adjusted = np.full(p.shape, np.nan)
    made = np.flatnonzero(~np.isnan(p))
    order = made[np.argsort(p[made], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * factors))
    return adjusted


class SeedVariance(NamedTuple):
    """Between-seed variance of a metric, pooled over the instances of a (model, dataset)."""

    variance: float
    degrees_of_freedom: int  # 0 with a single seed: the variance is unknown


def seed_variance(values: Floats) -> SeedVariance:
    """Return the residual mean square of the two-way layout value = instance + seed + residual.

    All runs of a cell with the same seed share a warm-up, so a seed shifts them together. That shift cancels in a
    delta, and the residual remains. Pooling the residual assumes that its variance is equal in all instances.

    Args:
        values: one number per run, (instances, seeds); NaN marks a missing run.
    """
    instances, seeds = np.nonzero(~np.isnan(values))
    design = np.concatenate([np.eye(values.shape[0])[instances], np.eye(values.shape[1])[seeds]], axis=1)
    y = values[instances, seeds]
    fit, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    left = len(y) - int(rank)
    return SeedVariance(float(((y - design @ fit) ** 2).sum() / left) if left else float("nan"), left)


class Delta(NamedTuple):
    """A metric of an instance against its baseline's, on the same seeds and, for accuracy, the same problems."""

    seeds: int = 0
    baseline: float = float("nan")
    instance: float = float("nan")
    absolute: float = float("nan")  # instance - baseline
    ci_low: float = float("nan")
    ci_high: float = float("nan")
    relative: float = float("nan")  # absolute / baseline
    relative_ci_low: float = float("nan")
    relative_ci_high: float = float("nan")
    standard_error: float = float("nan")  # of `absolute`
    freedom: float = float("nan")  # the degrees of freedom of `standard_error`; infinite for a bootstrap
    p: float = float("nan")
    covers_seeds: bool = False  # the interval and p include the variation between seeds


def over_seeds(
    baseline: float,
    instance: float,
    seeds: int,
    spread: SeedVariance,
    problems: tuple[Estimates, Estimates],
    confidence: float,
) -> Delta:
    """Return a delta with Student's intervals and Satterthwaite's degrees of freedom.

    Args:
        baseline: the baseline's metric, averaged over seeds.
        instance: the instance's metric, averaged over seeds.
        seeds: number of seeds that both have.
        spread: the seed variance of the cell.
        problems: the variances that problems add to the absolute and to the relative delta.
        confidence: level of the intervals.
    """
    absolute, scale = instance - baseline, baseline or float("nan")  # a baseline of zero has no relative delta
    ratio = instance / scale

    def half_width(seeds_part: float, problem_part: Estimates) -> tuple[float, float, float]:
        variance = seeds_part + max(0.0, problem_part.variances.sum())
        of_seeds = Estimates(np.array([seeds_part]), np.array([float(spread.degrees_of_freedom)]))
        freedom = float(satterthwaite(variance, add(of_seeds, problem_part)))
        return special.stdtrit(freedom, 0.5 + confidence / 2) * np.sqrt(variance), np.sqrt(variance), freedom

    half, error, freedom = half_width(2 * spread.variance / seeds, problems[0])
    # the derivative of instance / baseline: an error of the baseline counts `ratio` times
    relative_half, _, _ = half_width(spread.variance * (1 + ratio**2) / scale**2 / seeds, problems[1])
    p = 2 * special.stdtr(freedom, -abs(absolute) / error) if error > ROUNDING else float(abs(absolute) <= ROUNDING)
    relative = ratio - 1
    return Delta(
        seeds, baseline, instance, absolute, absolute - half, absolute + half,
        relative, relative - relative_half, relative + relative_half,
        float(error), float(freedom), float(p), covers_seeds=True,
    )  # fmt: skip


def metric_deltas(values: Floats, confidence: float) -> list[Delta]:
    """Return the delta of each instance for a metric with one number per run, such as the token speed.

    With one seed there is neither an interval nor a p, because the variation between runs is unknown.

    Args:
        values: (1 + instances, seeds), the baseline first; NaN marks a missing run.
        confidence: level of the intervals.
    """
    spread, no_problems = seed_variance(values), Estimates(np.zeros(0), np.zeros(0))
    deltas = []
    for row in values[1:]:
        paired = ~np.isnan(row) & ~np.isnan(values[0])
        if not paired.any():
            deltas.append(Delta())
            continue
        baseline, instance = float(values[0, paired].mean()), float(row[paired].mean())
        if spread.degrees_of_freedom:
            deltas.append(
                over_seeds(baseline, instance, int(paired.sum()), spread, (no_problems, no_problems), confidence)
            )
        else:
            absolute = instance - baseline
            relative = absolute / baseline if baseline else float("nan")
            deltas.append(Delta(int(paired.sum()), baseline, instance, absolute=absolute, relative=relative))
    return deltas


def accuracy_deltas(
    scores: Floats,
    benchmarks: npt.NDArray[np.str_],
    confidence: float,
    resamples: int = RESAMPLES,
    clusters: Codes | None = None,
) -> Iterator[Delta]:
    """Yield the delta of each instance's macro-average accuracy, paired per problem and seed.

    One seed: the percentile interval of a bootstrap over problems within benchmarks, and the p of `sign_flip_test`.
    Both cover the choice of problems for these two trained models, and not the randomness of training.

    Several seeds: Student's interval, whose variance is the sum of the cell's pooled `seed_variance` and of this
    delta's `problem_variance`. A bootstrap over three seeds would cover the true delta too rarely.

    Problems in clusters: Student's interval also with one seed, because a bootstrap of few clusters would cover the
    true delta too rarely.

    Args:
        scores: per problem, (1 + instances, seeds, n), the baseline first; NaN marks a missing run.
        benchmarks: the benchmark of each problem, (n,).
        confidence: level of the intervals.
        resamples: the number of resamples of the bootstrap and of the sign flips.
        clusters: the cluster of each problem, (n,), from `cluster_codes`; None if each problem is one of its own.
    """
    averages = macro_average(scores, benchmarks)  # (1 + instances, seeds)
    spread = seed_variance(averages)
    for row, average in zip(scores[1:], averages[1:], strict=True):
        paired = ~np.isnan(average) & ~np.isnan(averages[0])
        seeds = int(paired.sum())
        if not seeds:
            yield Delta()
            continue
        baseline, instance = float(averages[0, paired].mean()), float(average[paired].mean())
        differences = row[paired] - scores[0, paired]  # (seeds, n)
        scale = baseline or float("nan")
        # per problem, the first-order change of the relative delta
        linear = (row[paired] - instance / scale * scores[0, paired]) / scale
        if spread.degrees_of_freedom or clusters is not None:
            problems = (
                problem_variance(differences, benchmarks, clusters),
                problem_variance(linear, benchmarks, clusters),
            )
            own_spread = spread if spread.degrees_of_freedom else SeedVariance(0.0, 1)
            delta = over_seeds(baseline, instance, seeds, own_spread, problems, confidence)
            yield delta._replace(covers_seeds=spread.degrees_of_freedom > 0)
            continue
        both = np.stack([row[paired][0], scores[0, paired][0]], axis=1)  # (n, 2)
        drawn = bootstrap_macro_averages(both, benchmarks, resamples)
        tails = [0.5 - confidence / 2, 0.5 + confidence / 2]
        low, high = np.quantile(drawn[:, 0] - drawn[:, 1], tails)
        with np.errstate(divide="ignore", invalid="ignore"):
            relative_low, relative_high = np.quantile(drawn[:, 0] / drawn[:, 1] - 1, tails)
            relative = float(np.divide(instance - baseline, baseline))
        yield Delta(
            seeds, baseline, instance, instance - baseline, float(low), float(high),
            relative, float(relative_low), float(relative_high),
            float((drawn[:, 0] - drawn[:, 1]).std()), float("inf"),
            sign_flip_test(differences[0], benchmarks, resamples),
        )  # fmt: skip


def equivalence_p(delta: Delta, margin: float, sizes: npt.ArrayLike, samples: int) -> float:
    """Return the p of the hypothesis that a delta of the accuracy is at least as large as the margin, up or down.

    It is the larger p of two one-sided tests (Schuirmann, 1987), at minus and at plus the margin. A delta of this size
    means that some problems have another score. A study that happens to hold few of them shows little variance, and
    would be too sure of an equality. The p is therefore at least that of the rarest such change, one in single samples
    of the smallest benchmark: the probability of seeing as few of them as the delta amounts to, a Poisson variable.

    Args:
        delta: the delta.
        margin: the smallest change of the accuracy that matters, a share.
        sizes: the number of problems of each benchmark, or of clusters of problems.
        samples: completions per problem.
    """
    size, per_sample = abs(delta.absolute), change_per_sample(sizes, samples)
    p = special.stdtr(delta.freedom, (size - margin) / max(delta.standard_error, ROUNDING))
    return float(np.maximum(p, special.gammaincc(size / per_sample + 1, margin / per_sample)))


def change_per_sample(sizes: npt.ArrayLike, samples: int) -> float:
    """Return how much a single sample of the smallest benchmark changes the macro average."""
    numbers = np.asarray(sizes)
    return float(1 / (samples * len(numbers) * numbers.min()))


def best_by_chance(standard_errors: npt.ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Return the expected best delta if no instance differed from the baseline; the expected worst is its negative.

    The best of several noisy zeros is above zero. All deltas share the noise of one baseline, so they have a
    correlation of one half.

    Args:
        standard_errors: the standard errors of the deltas, (instances,).
        resamples: the number of simulated sets of deltas that are averaged.
        seed: the seed of the simulation.
    """
    errors = np.asarray(standard_errors, dtype=float)
    errors = errors[~np.isnan(errors)]
    if not len(errors):
        return float("nan")
    normal = np.random.default_rng(seed).normal(size=(resamples, len(errors) + 1))
    return float(((normal[:, 1:] - normal[:, :1]) / np.sqrt(2) * errors).max(axis=1).mean())


def smallest_resolvable(
    half_widths: npt.ArrayLike,
    standard_errors: npt.ArrayLike,
    tests: npt.ArrayLike,
    confidence: float,
    power: float,
) -> Floats:
    """Return for each delta (m,) the true delta that is resolved with the given probability, after Holm's correction.

    The p of the first delta of a cell is multiplied by the number of tests, so that the result holds for a single
    instance with an effect. With a power of 0.5 it is also how far from zero a measured delta has to be.

    Args:
        half_widths: half the width of each delta's uncorrected interval, (m,).
        standard_errors: the standard errors of the deltas, (m,).
        tests: the number of deltas of each delta's cell, (m,).
        confidence: the level of the intervals; a p below 1 - confidence is significant.
        power: the probability that a delta of the returned size is resolved.
    """
    errors, tail = np.asarray(standard_errors, dtype=float), (1 - confidence) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        quantiles = np.asarray(half_widths, dtype=float) / errors
    # Student's degrees of freedom are those of the interval, found by bisection of their logarithm. An interval of a
    # bootstrap may be narrower than a normal one, and then counts as normal.
    low, high = np.full(errors.shape, np.log(0.5)), np.full(errors.shape, np.log(1e6))
    for _ in range(40):
        middle = (low + high) / 2
        too_few = -special.stdtrit(np.exp(middle), tail) > quantiles
        low, high = np.where(too_few, middle, low), np.where(too_few, high, middle)
    freedom = np.exp(low)
    needed = special.stdtrit(freedom, power) - special.stdtrit(freedom, tail / np.asarray(tests))
    resolvable: Floats = needed * errors
    return resolvable
