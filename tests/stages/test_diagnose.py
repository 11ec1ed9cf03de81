"""`nested-reft diagnose`: its tables and its options."""

import json

import pandas as pd
import pytest

from nested_reft.config.stage_settings import DiagnosisSettings
from nested_reft.embedded.problems import generate
from nested_reft.errors import UserError
from nested_reft.stages import diagnose as diagnosis
from tests.conftest import TINY, run

SMALL = DiagnosisSettings(max_completion_length=16, batch_size=64)


@pytest.fixture()
def data(tmp_path):
    rows = [{"problem": row.problem, "answer": row.answer} for row in generate("mixed", "train", 8, seed=3)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data.jsonl"


def test_a_diagnosis_orders_ratios_and_layers(tmp_path, data):
    command = ["diagnose", str(TINY), "--data", str(data), "--out", str(tmp_path / "out")]
    sizes = [
        "--skip-ratios",
        "0.05,0.5",
        "--num-draws",
        "2",
        "--num-generations",
        "2",
        "--max-completion-length",
        "12",
    ]
    finished = run("nested-reft", *command, *sizes)
    assert finished.returncode == 0, finished.stderr
    by_ratio = pd.read_csv(tmp_path / "out" / "skip_ratios.csv")
    assert by_ratio["num_skipped"].tolist() == [0, 1, 14]
    assert abs(by_ratio["kl"][0]) < 1e-4 and by_ratio["acceptance_rate"][0] > 0.9999  # the numerical control
    # Of the two estimates of the KL, k3 is the one that is never negative, and precise enough on so few tokens.
    assert by_ratio["k3_kl"][0] < by_ratio["k3_kl"][1] < by_ratio["k3_kl"][2] and by_ratio["kl"][2] > 0.1
    assert (by_ratio["kl_lowest"] <= by_ratio["kl"]).all() and (by_ratio["kl"] <= by_ratio["kl_highest"]).all()
    assert (by_ratio["mean_length"] == 12).all()
    assert abs(by_ratio["overlap"] - by_ratio["acceptance_rate"]).max() < 0.1  # exact, and its estimate from samples
    assert (by_ratio["overlap_p5"] < by_ratio["overlap"])[1:].all() and by_ratio["overlap_p5"][0] > 0.999
    # Drafts gain less than their tokens are cheaper, and drafts that cost as much as the whole model gain nothing.
    assert by_ratio["draft_length"][0] == 0 and by_ratio["speculative_speed_up"][0] == 1
    assert (by_ratio["speculative_speed_up"] >= 1).all() and by_ratio["speculative_speed_up"][1] < 28 / 27
    assert 1 < by_ratio["speculative_speed_up"][2] < 2 and by_ratio["draft_length"][2] > 0
    by_layer = pd.read_csv(tmp_path / "out" / "layers.csv")
    assert by_layer["layer"].tolist() == list(range(1, 27)) and (by_layer["kl"] > 0).all()
    by_set = pd.read_csv(tmp_path / "out" / "sets.csv", dtype={"layers": str}, keep_default_na=False)
    assert by_set["choice"].tolist() == ["uniform"] * 6 + ["lowest"] * 2
    kls = by_layer.set_index("layer")["kl"]
    for _, row in by_set.iterrows():
        layers = [int(layer) for layer in row["layers"].split()]
        assert len(layers) == row["num_skipped"] and row["sum_of_layers"] == pytest.approx(kls[layers].sum(), rel=1e-4)
    assert by_set["layers"].tolist()[-2:] == [
        str(kls.idxmin()),
        " ".join(map(str, sorted(kls.nsmallest(14).index))),
    ]
    assert by_set["exact_kl"].tolist()[-1] < by_set[by_set["num_skipped"] == 14]["exact_kl"].iloc[:2].mean()
    assert (tmp_path / "out" / "diagnosis.svg").exists() and (tmp_path / "out" / "diagnosis.png").exists()


def test_a_diagnosis_of_what_cannot_be_nested_is_one_sentence(data):
    with pytest.raises(UserError, match=r"cannot be nested: 28 layers cannot be skipped where only 26 may be"):
        diagnosis.diagnose(TINY, data, DiagnosisSettings(skip_ratios=[0.99]))


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (["--batch-size", "0"], "--batch-size is 0, but it should be greater than or equal to 1; correct it."),
        (["--temperature", "0"], "--temperature is 0.0, but it should be greater than 0; correct it."),
        (
            ["--template", "r2"],
            "--template is 'r2', which is neither a template nor a file; choose one of",
        ),
        (["--skip-ratios", "1.5"], "--skip-ratios is '1.5'; give numbers from 0 to below 1"),
        (["--dtype", "float16"], "float16"),
    ],
)
def test_a_mistaken_option_is_refused_by_name(option, sentence, data):
    finished = run("nested-reft", "diagnose", str(TINY), "--data", str(data), *option)
    assert finished.returncode == 2 and sentence in finished.stderr and "Traceback" not in finished.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# A title\n", "line 1 is not JSON"),
        ('{"question": "1 + 1", "label": "2"}\n', "row 1 has the columns question, label, but needs"),
        ('{"problem": "1 + 1", "answer": ""}\n', "row 1 has an empty `answer`"),
        ("\n", "has no rows"),
    ],
)
def test_wrong_data_are_refused_before_the_model_is_loaded(text, words, tmp_path):
    (tmp_path / "wrong.jsonl").write_text(text)
    with pytest.raises(UserError, match=words):
        diagnosis.diagnose(tmp_path / "no model", tmp_path / "wrong.jsonl", SMALL)


def test_problems_may_have_the_format_of_a_training_set_or_of_a_benchmark(tmp_path):
    (tmp_path / "data.jsonl").write_text(
        '{"question": "What is 1 + 1?", "answer": "1 + 1 = <<1+1=2>>2\\n#### 2"}\n'
        '{"problem": "What is 2 / 4?", "answer": ["1/2", "0.5"]}\n{"problem": "unread"}\n'
    )
    found = diagnosis.problems_in(tmp_path / "data.jsonl", 2)
    assert [row["answer"] for row in found] == [["2"], ["1/2", "0.5"]]
