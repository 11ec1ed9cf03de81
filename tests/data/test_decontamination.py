"""Duplicates, contradictions, and problems of a benchmark are left out of training sets."""

from tests.data.rows import SVAMP_ROW, math, prepared


def test_benchmark_problems_are_dropped_from_training_sets(tmp_path):
    rows = [math(problem) for problem in ("never  TRAINED\n on?", "Never trained on!", "Find $3x+4$.", "Find $3x-4$.")]
    kept, dropped, manifest = prepared(tmp_path, rows, ["Other", "Never trained on?", "Find 3x + 4."])
    assert [row["problem"] for row in kept] == ["Never trained on!", "Find $3x-4$."]
    exact = {"kind": "exact", "benchmark": "b", "ngram": None}
    assert dropped == [
        exact | {"row": 1, "problem": "never  TRAINED\n on?", "benchmark_problem": "Never trained on?"},
        exact | {"row": 3, "problem": "Find $3x+4$.", "benchmark_problem": "Find 3x + 4."},
    ]
    assert manifest["rows"] == {"read": 4, "duplicates": 0, "contradictions": 0, "dropped": 2, "kept": 2}


def test_problems_that_share_a_run_of_words_with_a_benchmark_are_dropped(tmp_path):
    benchmark = "Ida counts five birds, six fish and seven cats on her way home. How many?"
    shared = "Tom counts FIVE birds; six \N{LATIN SMALL LIGATURE FI}sh and seven"  # seven words at its end
    for ngram, found in ((7, ["counts five birds six fish and seven"]), (8, [])):
        kept, dropped, manifest = prepared(tmp_path, [math(shared), math("Unlike.")], [benchmark], ngram)
        assert [row["ngram"] for row in dropped] == found
        assert [row["kind"] for row in dropped] == ["n-gram"] * len(found)
        assert all((row["problem"], row["benchmark_problem"]) == (shared, benchmark) for row in dropped)
        assert manifest["rows"]["dropped"] == len(found) and manifest["rows"]["kept"] == len(kept) == 2 - len(found)


def test_repeats_and_contradictions_are_dropped_and_listed(tmp_path):
    rows = [
        math("Once."),
        math("Twice.", "0.50"),
        math("twice .", "1/2"),
        math("Torn.", "3"),
        math("Torn.", "4"),
        math("torn.", "3"),
        SVAMP_ROW | {"Answer": 31.0},
    ]
    kept, dropped, manifest = prepared(tmp_path, rows)
    assert [row["problem"] for row in kept] == ["Once.", "Twice."]
    torn = "rows 4 and 5 are one problem with the answers 3 and 4"
    assert [(row["row"], row["kind"], row["reason"]) for row in dropped] == [
        (3, "duplicate", "row 2 is the same problem"),
        (4, "contradiction", torn),
        (5, "contradiction", torn),
        (6, "contradiction", torn),
        (7, "contradiction", "its equation gives 30, and not 31"),
    ]
    assert manifest["rows"] == {"read": 7, "duplicates": 1, "contradictions": 4, "dropped": 0, "kept": 2}
