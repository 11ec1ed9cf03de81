"""Validation: the sentence for each mistake, and the JSON that a stage receives."""

import pytest
import yaml

from nested_reft.config.parse import canonical, parse_settings
from nested_reft.config.study import Study
from nested_reft.errors import UserError
from tests.config.studies import changed, load
from tests.conftest import ROOT, TINY, snakemake


def test_order_and_spelling_of_numbers_do_not_matter():
    study = load("config.yaml")
    shuffled = {name: study[name] for name in reversed(study)}
    shuffled["training"] = {name: study["training"][name] for name in reversed(study["training"])}
    shuffled["training"]["learning_rate"] = "1e-4"  # YAML reads 1e-4 as text
    assert canonical(parse_settings(Study, shuffled)) == canonical(parse_settings(Study, study))


MISTAKES = {
    "unknown key": (
        "training.learning_rat",
        1e-4,
        "`training.learning_rat` is not known; did you mean `training.learning_rate`",
    ),
    "text for a number": ("training.learning_rate", "fast", "`training.learning_rate` is 'fast'"),
    "infinite": ("training.learning_rate", float("inf"), "`training.learning_rate` is inf"),
    "too much skipped": ("grid.skip_ratio", [0.96], "skip_ratio 0.96, which skips 27 of the 28 layers of tiny-28"),
    "nothing skipped": ("grid.skip_ratio", [0.01], "skip_ratio 0.01, which skips 0 of the 28 layers of tiny-28"),
    "no valid layer": ("grid.border", [1, 14], "of which 0 can be skipped at border 14"),
    "no border": ("grid.border", [0], "`grid.border.0` is 0"),
    "border at its old place": (
        "nesting.border",
        1,
        "`nesting.border` has moved; give a list, such as `grid: {border",
    ),
    "duplicate border": ("grid.border", [1, 2, 1], "duplicate run: the axis `border` lists 1 twice"),
    "unknown dataset": ("grid.dataset", ["gsm9k"], "'gsm9k', an unknown dataset"),
    "unknown model": ("grid.model", ["tiny-82"], "'tiny-82', an unknown model"),
    "missing path": ("models.tiny-28.path", "/no/such/model", "(/no/such/model) does not exist"),
    "missing embedded model": ("models.tiny-28.path", "embedded/tiny-82", "choose one of tiny-28"),
    "missing embedded data": ("datasets.mixed.path", "embedded/mixd", "choose one of one-step, multi-step, algebra"),
    "empty axis": ("grid.seed", [], "`grid.seed` is empty; give at least one value"),
    "percent for a share": ("grid.skip_ratio", [15], "`grid.skip_ratio.0` is 15, but a skip ratio is a share below 1"),
    "negative seed": ("grid.seed", [0, -1], "`grid.seed.1` is -1"),
    "duplicate run": ("grid.skip_ratio", [0.1, 0.05, 0.1], "duplicate run: the axis `skip_ratio` lists 0.1 twice"),
    "as many layers": ("grid.skip_ratio", [0.1, 0.11], "duplicate run: skip_ratio 0.11 skips 3 of the 28 layers"),
    "reserved name": ("benchmarks", {"overall": {"path": "embedded/algebra", "size": 1}}, "named `overall`"),
    "folder without a model": ("models.tiny-28.path", str(ROOT / "config"), "holds no config.json"),
    "greedy samples": ("evaluation.num_samples", 4, "has num_samples 4 at temperature 0"),
    "unknown mitigation": (
        "grid.mitigation",
        ["retrac"],
        "`grid.mitigation.0` is 'retrac', but it should be 'base', ",
    ),
    "unknown ratio level": (
        "nesting.ratio_level",
        "prefixes",
        "`nesting.ratio_level` is 'prefixes', but it should be 'token', 'prefix', 'prefix_min', 'sequence' or",
    ),
    "IcePop without on-policy tokens": ("nesting.icepop_min", 1.5, "`nesting.icepop_min` is 1.5"),
    "sequence mask without on-policy sequences": ("nesting.sequence_mask_cap", 0.5, "`nesting.sequence_mask_cap` is"),
    "geometric mask of nothing": ("nesting.geometric_mask_bound", 1, "`nesting.geometric_mask_bound` is 1"),
    "negative threshold": ("nesting.opsm_threshold", -0.1, "`nesting.opsm_threshold` is -0.1"),
    "whole model alone": ("nesting.whole_share", 1, "`nesting.whole_share` is 1"),
    "negative share": ("nesting.whole_share", -0.25, "`nesting.whole_share` is -0.25"),
    "share of a completion": ("nesting.whole_share", 0.1, "has a section nesting whose whole_share 0.1 is "),
    "unknown strategy": ("nesting.strategy", "random", "`nesting.strategy` is 'random', but it should be 'uniform', "),
    "fixed without layers": ("nesting", {"strategy": "fixed"}, "`nesting` has strategy fixed without skipped_layers"),
    "layers that nobody reads": ("nesting.skipped_layers", [4], "has skipped_layers [4] with strategy uniform, which"),
    "too few fixed layers": (
        "nesting",
        {"strategy": "fixed", "skipped_layers": [4, 4]},
        "has skip_ratio 0.1 for tiny-28, and nesting.skipped_layers names 1 layers, but the skip ratio asks for 3; na",
    ),
    "fixed border": (
        "nesting",
        {"strategy": "fixed", "skipped_layers": [27]},
        "has skip_ratio 0.05 for tiny-28, and nesting.skipped_layers names layer 27, which may not be skipped; choose",
    ),
    "no overlap": ("nesting.budget_tau", 0, "`nesting.budget_tau` is 0, but it should be greater than 0"),
    "full overlap": ("nesting.budget_tau", 1.0, "`nesting.budget_tau` is 1.0, but it should be less than 1"),
    "CISPO without its cap": ("training.loss_type", "cispo", "set epsilon_high to 1 or more, for example to 5"),
    "filtered sampling": ("training.top_p", 0.9, "`training.top_p` is 0.9, but it is fixed at 1: with nucleus"),
    "KL penalty": ("training.beta", 0.04, "`training.beta` is 0.04, but it is fixed at 0, the weight of the KL"),
    "text as a seed": ("grid.seed", ["zero"], "`grid.seed.0` is 'zero', but it should be a valid integer"),
    "missing checkpoint": (
        "models.tiny-28.sft_checkpoint",
        "sft-{dataset}",
        "has models.tiny-28.sft_checkpoint sft-mixed, which does not hold the config.json of a language model",
    ),
    "checkpoint of another model": (
        "models.tiny-28.sft_checkpoint",
        "embedded/wide-20",
        "which has 20 layers where tiny-28 has 28",
    ),
    "negative epochs": ("sft.num_train_epochs", -1, "`sft.num_train_epochs` is -1"),
    "unknown template": (
        "prompt.template",
        "qwen",
        "`prompt.template` is 'qwen', which is neither a template nor a file; choose one of qwen-math",
    ),
    "folder for a template": ("prompt.template", str(ROOT), "which is neither a template nor a file"),
    "long text without a place": ("prompt.template", 300 * "a", "which is neither a template nor a file"),
    "template without a place": ("prompt.template", str(ROOT / "LICENSE"), "does not hold {problem}"),
    "binary template": ("prompt.template", str(TINY / "model.safetensors"), "which is not text in UTF-8"),
    "unknown sampler": (
        "training.sampler",
        "sglang",
        "`training.sampler` is 'sglang', but it should be 'generate', 'engine'",
    ),
    "vLLM at a temperature with a ban": (
        "training",
        {"sampler": "vllm", "temperature": 0.7, "fixed_length": True},
        "has temperature 0.7 with fixed_length and sampler vllm, which reports log-probabilities at this temperature",
    ),
    "batch does not divide": ("training.per_device_train_batch_size", 7, "7 does not divide"),
    "name of no folder": ("study", "a/b", "`study` is 'a/b', but a name consists of the letters A-Z and a-z, digits"),
    "name with accents": ("models", {"modèle β": {"path": "x/y"}}, "`models.modèle β` is 'modèle β', but a name"),
    "number for a section": ("training", 3, "`training` is 3, but it should be a mapping with keys of its own"),
    "password": ("tracking.uri", "https://me:hush@host", "`tracking.uri` must not hold a password"),
    "missing section": ("benchmarks", ..., "`benchmarks` is missing"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(mistake):
    path, value, words = MISTAKES[mistake]
    with pytest.raises(UserError) as error:
        parse_settings(Study, changed(path, value))
    assert words in str(error.value)
    assert "\n" not in str(error.value) and "hush" not in str(error.value)


@pytest.mark.parametrize("mistake", ["unknown key", "no valid layer", "missing path", "duplicate run"])
def test_snakemake_stops_with_exit_code_2_before_any_job(mistake, tmp_path):
    path, value, words = MISTAKES[mistake]
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(changed(path, value)))
    finished = snakemake(tmp_path, "--configfile", str(tmp_path / "bad.yaml"))
    assert finished.returncode == 2
    assert words in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (tmp_path / "results").exists()
