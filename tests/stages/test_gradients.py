"""`nested-reft gradients`: its gradients against the trainer's and against enumeration, and how a start goes on."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer, TrainerCallback
from typer.testing import CliRunner

from nested_reft.cli import app
from nested_reft.config.sections import Nesting
from nested_reft.config.stage_settings import GradientSettings
from nested_reft.embedded.problems import generate
from nested_reft.errors import UserError
from nested_reft.report import gradients as statistics
from nested_reft.rollout.divergence import CompletionSampler, Rollouts
from nested_reft.stages import gradients as bench
from nested_reft.trainer import NestedGRPOTrainer
from tests.conftest import TINY
from tests.examples.test_theorem_1 import toy
from tests.test_trainer import make


def flat(gradients):
    """Return gradients whole, in the place of a sketch."""
    return torch.cat([gradient.flatten() for gradient in gradients])


# ---- the gradient -------------------------------------------------------------------------------------


class Gradient(TrainerCallback):
    """Keeps the gradient with which the optimizer makes its step."""

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.flat = flat([parameter.grad for parameter in model.parameters()]).clone()


@pytest.mark.parametrize(("mitigation", "level"), [("base", ""), ("is", "sequence")])
def test_the_gradient_is_that_of_the_trainer(mitigation, level, small_model, tmp_path):
    """Of Dr. GRPO, which divides by the largest length, on completions of several lengths."""
    kept, nesting = Gradient(), Nesting(ratio_level=level or "token")
    arguments = {"max_steps": 1, "max_grad_norm": 0.0, "loss_type": "dr_grpo"}
    instance = {"skip_ratio": 0.5, "border": 1, "mitigation": mitigation, "nesting": nesting}
    others = {"keep_completions": True, "callbacks": [kept]}
    before = {name: weight.clone() for name, weight in small_model.state_dict().items()}
    trainer = make(NestedGRPOTrainer, small_model, tmp_path, "grpo", arguments, **instance, **others)
    trainer.train()
    small_model.load_state_dict(before)
    rows = []
    for batch in trainer.micro_batches:
        masks = batch["prompt_mask"].bool(), batch["completion_mask"].bool()
        for row, (prompt, completion) in enumerate(zip(*masks, strict=True)):
            prompt_ids = batch["prompt_ids"][row][prompt].tolist()
            logps = batch["sampling_per_token_logps"][row][completion].tolist()
            rollout = prompt_ids, batch["completion_ids"][row][completion].tolist(), logps
            rows.append((*rollout, batch["rewards"][row].item(), batch["advantages"][row].item()))
    rows.sort(key=lambda row: row[0])  # TRL has shuffled the completions of both prompts
    *rollouts, rewards, advantages = map(list, zip(*rows, strict=True))
    assert len({len(tokens) for tokens in rollouts[1]}) > 1 or min(map(len, rollouts[1])) == 6
    mine = bench.advantages_of(torch.tensor(rewards), 4, "group")
    assert mine.tolist() == pytest.approx(advantages, abs=1e-5) and mine.abs().max() > 0.5
    for share_prompts in (False, True):
        settings = GradientSettings(
            max_completion_length=6, temperature=0.8, batch_size=4, share_prompts=share_prompts
        )
        found, seconds = bench.policy_gradients(
            small_model, Rollouts(*rollouts), mine, [bench.Arm(0.5, mitigation, level)] * 2, settings, flat
        )
        torch.testing.assert_close(-found[0], kept.flat, rtol=1e-3, atol=1e-5 * kept.flat.abs().max().item())
        assert torch.equal(found[0], found[1]) and len(seconds) == 2


def test_advantages_are_scaled_by_the_group_the_batch_or_nothing():
    rewards = torch.tensor([0.0, 2.0, 5.0, 5.0])
    assert bench.advantages_of(rewards, 2, "none").tolist() == [-1.0, 1.0, 0.0, 0.0]
    group = 1 / (2**0.5 + 1e-4)
    assert bench.advantages_of(rewards, 2, "group").tolist() == pytest.approx([-group, group, 0.0, 0.0])
    batch = 1 / (6**0.5 + 1e-4)
    assert bench.advantages_of(rewards, 2, "batch").tolist() == pytest.approx([-batch, batch, 0.0, 0.0])


@pytest.fixture(scope="module")
def enumerated():
    """Return the model of Theorem 1, the gradients of all its tokens, and its policies by the skipped layer."""
    model = toy.toy_model()
    whole, nested_logps = toy.policies(model, 1)
    return model, toy.token_gradients(model), whole, nested_logps


def test_the_expected_gradient_is_the_enumerated_one(enumerated):
    """All completions form the roll-out, and the probability of each is a factor of its advantage."""
    model, gradients, whole, nested_logps = enumerated
    settings = GradientSettings(max_completion_length=toy.LENGTH, batch_size=len(toy.SEQUENCES))
    arms = [bench.Arm(0.125, "is", "sequence"), bench.Arm(0.125, "practical", "")]
    expected = torch.zeros(2, gradients.shape[2], dtype=torch.float64)
    for behavior in nested_logps:
        prompts = [toy.PROMPT] * len(toy.SEQUENCES)
        rollouts = Rollouts(prompts, toy.SEQUENCES.tolist(), behavior.tolist())
        scale = len(toy.SEQUENCES) * toy.LENGTH / len(nested_logps)
        advantages = (scale * behavior.sum(1).exp() * toy.ADVANTAGES).float()
        expected += bench.policy_gradients(model, rollouts, advantages, arms, settings, flat)[0].double()
    exact = toy.exact_gradient(whole, gradients)
    sequence, practical = ((gradient - exact).norm() / exact.norm() for gradient in expected)
    assert sequence < 1e-4
    assert practical.item() == pytest.approx(toy.moments(1, "practical", "token", model, gradients).bias, rel=1e-4)


def test_sampled_batches_find_the_enumerated_biases(enumerated):
    """The intervals of the whole model and of the sequence's ratio contain 0, and that of `practical` its bias."""
    _, gradients, whole, nested_logps = enumerated
    num_batches, group, size = 100, 16, 512
    generator = torch.Generator().manual_seed(0)

    def of_sequences(mitigation, behavior):
        """Return the gradient of each sequence whose advantage is 1, (S, parameters)."""
        weight = toy.weights(mitigation, "sequence", whole, behavior, torch.ones(len(whole), 1))
        return torch.einsum("st,stp->sp", weight, gradients)

    on_policy = of_sequences("practical", whole)
    of_layers = [(behavior, of_sequences("is", behavior)) for behavior in nested_logps]

    def draw(policy, number):
        """Return the sum of the advantages of each sequence in a roll-out, (S,)."""
        drawn = torch.multinomial(policy.sum(1).exp(), number, replacement=True, generator=generator)
        advantages = bench.advantages_of(toy.ADVANTAGES[drawn], group, "none") / number
        return torch.zeros(len(whole), dtype=torch.float64).index_add_(0, drawn, advantages)

    found = []
    for batch in range(num_batches):
        behavior, corrected = of_layers[batch % len(of_layers)]
        on_nested = draw(behavior, size)
        estimates = [
            draw(whole, 4 * size) @ on_policy,
            draw(whole, size) @ on_policy,
            on_nested @ corrected,
            on_nested @ on_policy,
        ]
        found.append(torch.stack(estimates))
    reference, control, sequence, practical = torch.stack(found, dim=1).numpy()
    # The group's mean contains the completion itself, which shrinks the gradient by 1 - 1/G.
    exact = (1 - 1 / group) * toy.exact_gradient(whole, gradients)
    shifted = torch.zeros_like(exact)
    for behavior in nested_logps:
        probability = behavior.sum(1).exp()
        centered = probability * (toy.ADVANTAGES - probability @ toy.ADVANTAGES)
        shifted += (1 - 1 / group) * centered @ on_policy / len(nested_logps)

    def squared_bias(arm, against):
        return statistics.interval(statistics.moments(arm, against, against).squared_bias)

    every = np.tile(exact.numpy(), (num_batches, 1))
    for arm, against, widest in ((reference, every, 0.02), (control, reference, 0.05), (sequence, reference, 0.5)):
        found_bias = squared_bias(arm, against)
        assert found_bias.low <= 0 <= found_bias.high < widest, found_bias
    truth = ((shifted - exact).square().sum() / exact.square().sum()).item()
    found_bias = squared_bias(practical, reference)
    assert 0.1 < found_bias.low < truth < found_bias.high, (truth, found_bias)


def test_a_nested_roll_out_has_the_random_numbers_of_the_twin_and_the_control_has_its_own(small_model, monkeypatch):
    monkeypatch.setattr(bench, "first_answer_correctness", lambda texts, _: [len(set(text)) / 10 for text in texts])
    changes = {"max_completion_length": 6, "prompts_per_batch": 2, "num_generations": 3, "reference_groups": 2}
    settings = GradientSettings(mitigations=["practical"], skip_ratios=[0.01, 0.5], batch_size=32, **changes)
    sampler = CompletionSampler(small_model, AutoTokenizer.from_pretrained(TINY), settings)
    problems = [{"problem": f"{number} + 1", "answer": ["2"]} for number in range(5)]
    draws = {0.0: [[], []], 0.01: [[], []], 0.5: [[1, 2, 3], [1, 2, 4]]}
    setup = bench.Bench(problems, sampler, draws, bench.arms_of(settings), flat, settings)
    first, again, second = (bench.measure_batch(setup, batch)["sketches"] for batch in (0, 0, 1))
    reference, twin, control, nothing_skipped, half_skipped = first
    assert np.array_equal(nothing_skipped, twin) and not np.allclose(half_skipped, twin)
    assert not np.allclose(reference, twin) and not np.allclose(control, twin) and not np.allclose(control, reference)
    assert np.array_equal(first, again) and not np.allclose(first[1], second[1])


# ---- the command --------------------------------------------------------------------------------------


@pytest.fixture()
def problems(tmp_path):
    rows = [{"problem": row.problem, "answer": row.answer} for row in generate("mixed", "train", 8, seed=3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "rows.jsonl"


def command(problems, *options):
    """Return the result of the command with one arm beside the whole model, on completions too short to be right."""
    small = ["--num-batches", "4", "--prompts-per-batch", "1", "--num-generations", "2", "--sampler", "generate"]
    small += [
        "--max-completion-length",
        "2",
        "--skip-ratios",
        "0.5",
        "--mitigations",
        "is",
        "--sketch-dimension",
        "8",
        "--share-prompts",
    ]
    out = ["--out", str(problems.parent / "out")]
    return CliRunner().invoke(app, ["gradients", str(TINY), "--data", str(problems), *small, *out, *options])


def test_a_second_start_goes_on_and_other_settings_are_refused(problems, monkeypatch):
    batches = problems.parent / "out" / "batches"
    refused = command(problems)
    assert isinstance(refused.exception, UserError)
    assert "cannot be distinguished from zero after --num-batches 4" in str(refused.exception)
    assert sorted(path.name for path in batches.iterdir()) == [f"0000{batch}.safetensors" for batch in range(4)]
    first = load_file(batches / "00000.safetensors")
    assert first["sketches"].shape == (4, 8) and not first["sketches"].any()  # without a reward
    facts = dict(zip(bench.FACTS, first["facts"], strict=True))
    assert facts["tokens"].tolist() == [4, 4] and facts["reward"].tolist() == [0, 0]
    assert (facts["rollout_seconds"] > 0).all() and (facts["update_seconds"] > 0).all()
    # In place of what was measured: gradients with a known bias. One is missing, and only this one is measured again.
    rng, measured = np.random.default_rng(0), []
    for batch in range(4):
        common = np.full((4, 8), 5.0) + 0.1 * rng.normal(size=8) + 0.01 * rng.normal(size=(4, 8))
        common[3, 0] += 7.0
        kept = first | {"sketches": common.astype(np.float32)}
        save_file(kept, batches / f"0000{batch}.safetensors")
        monkeypatch.setattr(bench, "measure_batch", lambda _, batch, kept=kept: measured.append(batch) or kept)
    (batches / "00003.safetensors").unlink()
    done = command(problems)
    assert done.exit_code == 0 and measured == [3], done.output
    out = problems.parent / "out"
    assert {path.name for path in out.iterdir()} == {
        *("batches", "settings.json", "gradients.csv", "gradients.json", "gradients.svg", "gradients.png")
    }
    table = pd.read_csv(out / "gradients.csv", keep_default_na=False)
    assert table["mitigation"].tolist() == ["none", "is"] and table["ratio_level"].tolist() == ["", "token"]
    assert table["bias"].astype(float).tolist() == pytest.approx([0, 7 / 200**0.5], abs=0.01)
    assert json.loads((out / "gradients.json").read_text())["settings"]["num_batches"] == 4
    # A larger number of batches goes on.
    assert command(problems, "--num-batches", "5").exit_code == 0 and measured == [3, 4]
    for option, value, was in (("--seed", "1", "0"), ("--mitigations", "tis", "['is']")):
        refused = command(problems, option, value)
        assert f"holds batches for which {option} was {was}, and now it is" in str(refused.exception)
    (batches / "00001.safetensors").write_bytes(b"half")
    assert "00001.safetensors is damaged" in str(command(problems).exception)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--mitigations", "is,tsi"], "--mitigations is 'tsi', but it should be 'base', 'practical'"),
        (["--ratio-levels", "word"], "--ratio-levels is 'word', but it should be 'token', 'prefix'"),
        (["--num-batches", "3"], "--num-batches is 3, but it should be greater than or equal to 4; correct it."),
        (["--prompts-per-batch", "9"], "--prompts-per-batch is 9, but"),
        (["--skip-ratios", "0.99"], "cannot be nested: 28 layers cannot be skipped where only 26 may be"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(options, sentence, problems):
    refused = command(problems, *options)
    assert isinstance(refused.exception, UserError) and sentence in str(refused.exception)
    assert not (problems.parent / "out").exists()
