"""The hooks on TRL's trainers: stock TRL where nothing is skipped, and the paper's gradient where something is."""

import contextlib
import copy
import inspect
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from nested_reft.config.sections import Nesting
from nested_reft.errors import NestingError
from nested_reft.grading.rewards import correctness
from nested_reft.mitigation import MITIGATIONS, SampledTokens, importance_ratio, token_weights
from nested_reft.model.layers import decoder_layers, nested
from nested_reft.model.loading import load_model
from nested_reft.nesting import draw_skipped_layers, valid_layers
from nested_reft.rollout import engine, generate, sampler
from nested_reft.rollout.generate import sample_by_generate
from nested_reft.rollout.sampler import Sampler
from nested_reft.strategies import STRATEGIES, Calibration, choose_layers
from nested_reft.trainer import (
    NestedGRPOTrainer,
    NestedRLOOTrainer,
    NestedRollouts,
    check_equal_layers,
    refuse_arguments,
)
from tests.conftest import SMOLLM2, TINY, needs_smollm2

STOCK = {"grpo": GRPOTrainer, "rloo": RLOOTrainer}
NESTED = {"grpo": NestedGRPOTrainer, "rloo": NestedRLOOTrainer}
PROMPTS = ["What is 3 + 4?", "Tom has 2 apples and buys 5 more.", "5", "Is 17 prime? Say why.", "2 * 8 ="]


def vowels(completions, **kwargs):
    """Reward anything that differs between the completions of a random model."""
    return [sum(completion.count(vowel) for vowel in "aeiou") / 10 for completion in completions]


def make(kind, model, tmp_path, algorithm="grpo", arguments=None, **others):
    """Return a trainer of TRL or ours: two prompts with four completions a step; 2.5 steps are an epoch."""
    settings = {
        "output_dir": str(tmp_path / "trl"),
        "seed": 0,
        "max_steps": 5,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "max_completion_length": 6,
        "temperature": 0.8,
        "beta": 0.0,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_dropout": True,
        "save_strategy": "no",
        "report_to": "none",
        "optim": "adamw_torch",
        "disable_tqdm": True,
    } | (arguments or {})
    config = GRPOConfig(**settings) if algorithm == "grpo" else RLOOConfig(**settings)
    data = Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS])
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    defaults = {"reward_funcs": vowels, "train_dataset": data, "processing_class": tokenizer}
    return kind(model, args=config, **defaults | others)


def ours(
    model,
    tmp_path,
    algorithm="grpo",
    skip_ratio=0.5,
    mitigation="retrace",
    arguments=None,
    sampler=None,
    border=1,
    **nesting,
):
    """Return our trainer; the model has six layers, so that half of them are three."""
    instance = {"skip_ratio": skip_ratio, "border": border, "mitigation": mitigation}
    others = {"nesting": Nesting(**nesting), "sampler": sampler}
    return make(NESTED[algorithm], model, tmp_path, algorithm, arguments, **instance, **others)


def trained(some_trainer):
    """Return the weights after training."""
    some_trainer.train()
    return copy.deepcopy(some_trainer.model.state_dict())


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


# ---- nothing else changed -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "mitigations", "steps"),
    [
        ("grpo", list(MITIGATIONS)[:5], 5),
        ("rloo", list(MITIGATIONS)[:5], 5),
        ("grpo", list(MITIGATIONS)[5:], 1),
        pytest.param("rloo", list(MITIGATIONS)[5:], 5, marks=[pytest.mark.slow, pytest.mark.nightly]),
    ],
)
def test_without_a_skipped_layer_every_mitigation_is_stock_trl_bit_for_bit(
    algorithm, mitigations, steps, small_model, tmp_path
):
    start, arguments = copy.deepcopy(small_model.state_dict()), {"max_steps": steps}
    stock = trained(make(STOCK[algorithm], copy.deepcopy(small_model), tmp_path, algorithm, arguments))
    assert not any(torch.equal(stock[name], start[name]) for name in start)
    for mitigation in mitigations:
        model = copy.deepcopy(small_model)
        assert equal(trained(ours(model, tmp_path, algorithm, 0.0, mitigation, arguments)), stock), mitigation


LOSSES = [{"loss_type": "luspo"}, {"loss_type": "sapo"}, {"loss_type": "cispo", "epsilon_high": 5.0}]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss["loss_type"])
def test_the_same_for_the_other_losses(loss, small_model, tmp_path):
    arguments = loss | {"max_steps": 1}
    stock = trained(make(GRPOTrainer, copy.deepcopy(small_model), tmp_path, "grpo", arguments))
    for mitigation in ("base", "retrace", "topr"):
        model = copy.deepcopy(small_model)
        assert equal(trained(ours(model, tmp_path, "grpo", 0.0, mitigation, arguments)), stock), mitigation


REUSE = {"num_iterations": 2, "steps_per_generation": 4}  # a generation batch is four optimizer steps


@pytest.mark.parametrize("algorithm", STOCK)
def test_the_same_where_a_batch_outlives_an_optimizer_step(algorithm, small_model, tmp_path):
    stock = trained(make(STOCK[algorithm], copy.deepcopy(small_model), tmp_path, algorithm, REUSE))
    for mitigation in ("base", "retrace"):
        model = copy.deepcopy(small_model)
        assert equal(trained(ours(model, tmp_path, algorithm, 0.0, mitigation, REUSE)), stock), mitigation


# ---- other samplers -----------------------------------------------------------------------------


def ratios(some_trainer):
    """Return the extreme ratios pi / mu of all steps while training."""
    seen = []
    mitigate = some_trainer._mitigate

    def mitigate_and_note(per_token_logps, inputs):
        mask = inputs["completion_mask"].bool()
        seen.append((per_token_logps.detach() - inputs["sampling_per_token_logps"])[mask].exp())
        return mitigate(per_token_logps, inputs)

    some_trainer._mitigate = mitigate_and_note
    some_trainer.train()
    return torch.cat(seen)


@pytest.mark.parametrize("algorithm", STOCK)
@pytest.mark.parametrize("kind", ["generate", "engine", pytest.param("engine-compiled", marks=pytest.mark.slow)])
def test_with_no_layer_skipped_every_sampler_is_the_target_policy(kind, algorithm, small_model, tmp_path):
    seen = ratios(ours(small_model, tmp_path, algorithm, 0.0, "base", sampler=Sampler(kind)))
    assert len(seen) > 100 and (seen - 1).abs().max() < 2e-5


@pytest.mark.slow
def test_with_layers_skipped_the_engine_is_off_policy_by_as_much_as_generate(small_model, tmp_path):
    """Mean KL(mu || pi) over some hundred tokens; the samples differ, their distribution does not."""
    kls = {}
    for kind in ("generate", "engine", "engine-compiled"):
        still = {"learning_rate": 0.0, "max_steps": 12}
        seen = ratios(ours(copy.deepcopy(small_model), tmp_path, arguments=still, sampler=Sampler(kind)))
        kls[kind] = -seen.log().mean(), seen.log().std() / len(seen) ** 0.5
    assert kls["generate"][0] > 4 * kls["generate"][1]
    for kind in ("engine", "engine-compiled"):
        assert abs(kls[kind][0] - kls["generate"][0]) < 3 * (kls[kind][1] + kls["generate"][1]), kls


def test_in_bfloat16_over_float32_weights_the_engine_is_the_target_policy_but_for_rounding(small_model, tmp_path):
    """As in the paper's study: autocast in sampling and in training alike."""
    arguments = {"bf16": True, "use_cpu": True}
    seen = ratios(ours(small_model, tmp_path, "grpo", 0.0, "base", arguments, Sampler("engine")))
    assert next(small_model.parameters()).dtype == torch.float32
    assert 1e-5 < seen.log().abs().mean() < 0.02


def test_what_the_engine_draws_does_not_depend_on_the_global_random_state(small_model, tmp_path):
    seen = []
    for seed, global_seed in ((0, 1), (0, 2), (1, 1)):
        arguments = {"max_steps": 1, "seed": seed, "data_seed": 0}
        some_trainer = ours(copy.deepcopy(small_model), tmp_path, arguments=arguments, sampler=Sampler("engine"))
        torch.manual_seed(global_seed)
        some_trainer.train()
        seen.append(some_trainer._behavior_logps)
    assert seen[0] == seen[1] != seen[2]


def test_an_end_that_is_banned_for_a_while_is_the_business_of_generate(small_model, tmp_path):
    arguments = {"generation_kwargs": {"min_new_tokens": 3}}
    with pytest.raises(NestingError, match=r"min_new_tokens = 3 is less than max_new_tokens = 6.*sampler to generate"):
        ours(small_model, tmp_path, arguments=arguments, sampler=Sampler("engine")).train()


def nested_sampler(algorithm):
    """Return stock TRL but for its sampler: what `practical` has to be."""

    class NestedSampler(STOCK[algorithm]):
        def _generate_single_turn(self, prompt_ids, *args):
            skipped = draw_skipped_layers(valid_layers(6, border=1), 3, self.args.seed, self.state.global_step)
            with nested(self.model, skipped), torch.no_grad():
                ids, self.logps = sample_by_generate(
                    self.model, prompt_ids, self.generation_config, self.eos_token_ids
                )
            return (ids, None) if algorithm == "grpo" else ids

    return NestedSampler


def nested_old_policy(algorithm):
    """Return the same with the behavior policy as TRL's old policy: what `base` has to be."""

    class NestedOldPolicy(nested_sampler(algorithm)):
        def _generate_and_score_completions(self, inputs):
            batch = super()._generate_and_score_completions(inputs)
            rows = [torch.tensor(row) for row in self.logps]
            padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            key = {"grpo": ("old_per_token_logps", padded), "rloo": ("old_logps", padded.sum(1))}
            return batch | dict([key[algorithm]])

    return NestedOldPolicy


@pytest.mark.parametrize("arguments", [{}, REUSE], ids=["aligned", "reused"])
@pytest.mark.parametrize("algorithm", STOCK)
@pytest.mark.parametrize(("mitigation", "reference"), [("practical", nested_sampler), ("base", nested_old_policy)])
def test_mitigations_are_what_stock_trl_makes_of_nested_samples(
    mitigation, reference, algorithm, arguments, small_model, tmp_path
):
    model = copy.deepcopy(small_model)
    stock = trained(make(reference(algorithm), copy.deepcopy(small_model), tmp_path, algorithm, arguments))
    assert equal(trained(ours(model, tmp_path, algorithm, 0.5, mitigation, arguments)), stock)


# ---- a share of the completions from the whole model ----------------------------------------------


def first_rollout(some_trainer):
    """Return prompts, completions and log mu of the first roll-out, by row, and the skipped layers."""
    seen = []
    generate_turn = some_trainer._generate_single_turn

    def generate_and_note(prompt_ids, *args):
        generated = generate_turn(prompt_ids, *args)
        seen.append((prompt_ids, generated[0], some_trainer._behavior_logps, some_trainer.skipped_layers))
        return generated

    some_trainer._generate_single_turn = generate_and_note
    some_trainer.train()
    return seen[0]


def test_both_policies_draw_what_each_draws_alone_and_all_log_probs_are_those_of_the_nested_model(
    small_model, tmp_path
):
    arguments = {"max_steps": 1, "learning_rate": 0.0}
    rollouts = {}
    for name, skip_ratio, share in (("nested", 0.5, 0.0), ("whole", 0.0, 0.0), ("mixture", 0.5, 0.25)):
        chosen = Sampler("engine")
        some_trainer = ours(small_model, tmp_path, "grpo", skip_ratio, "is", arguments, chosen, whole_share=share)
        rollouts[name] = first_rollout(some_trainer)
    prompts, completions, logps, skipped = rollouts["mixture"]
    assert some_trainer._is_whole == [True, False, False, False] * 2
    for row, is_whole in enumerate(some_trainer._is_whole):
        assert completions[row] == rollouts["whole" if is_whole else "nested"][1][row]
        ids = torch.tensor([prompts[row] + completions[row]])
        with torch.no_grad(), nested(small_model, skipped):
            scored = (small_model(ids).logits[0, len(prompts[row]) - 1 : -1] / 0.8).log_softmax(-1)
        expected = scored.gather(1, torch.tensor(completions[row]).unsqueeze(1)).squeeze(1)
        assert torch.allclose(torch.tensor(logps[row]), expected, atol=1e-5)
    assert completions[0] != rollouts["nested"][1][0]


@pytest.mark.parametrize(("algorithm", "mitigation"), [("grpo", "is"), ("rloo", "base")])
def test_with_a_share_of_the_whole_model_no_weight_exceeds_its_inverse(algorithm, mitigation, small_model, tmp_path):
    arguments, nesting = {"logging_steps": 1, "max_steps": 3}, {"ratio_level": "sequence", "whole_share": 0.5}
    some_trainer = ours(small_model, tmp_path, algorithm, 0.5, mitigation, arguments, **nesting)
    some_trainer.train()
    rows = [row for row in some_trainer.state.log_history if "loss" in row]
    assert max(row["sampling/importance_sampling_ratio/max"] for row in rows) <= 2 * (1 + 1e-6)
    names = ("old_per_token_logps", "sampling_per_token_logps", "completion_mask", "is_whole")
    pi, mu, mask, is_whole = (torch.cat([batch[name] for batch in some_trainer.micro_batches]) for name in names)
    assert importance_ratio(pi, mu, mask, "sequence").max() > 10  # without the mixture
    assert is_whole.sum() == 4  # of the eight completions of a step
    assert rows[-1]["sampling/kl"] == pytest.approx((mu - pi)[~is_whole][mask[~is_whole].bool()].mean().item())


def test_without_a_skipped_layer_a_share_of_the_whole_model_is_stock_trl_bit_for_bit(small_model, tmp_path):
    arguments = {"max_steps": 1}
    stock = trained(make(GRPOTrainer, copy.deepcopy(small_model), tmp_path, "grpo", arguments))
    assert equal(trained(ours(small_model, tmp_path, "grpo", 0.0, "is", arguments, whole_share=0.5)), stock)


CALIBRATION = Calibration({1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}, {1: 0.95, 2: 0.9, 3: 0.8})


def test_without_a_skipped_layer_every_strategy_is_stock_trl_bit_for_bit(small_model, tmp_path):
    arguments = {"max_steps": 1}
    stock = trained(make(GRPOTrainer, copy.deepcopy(small_model), tmp_path, "grpo", arguments))
    for strategy in STRATEGIES:
        nesting = {"strategy": strategy, "skipped_layers": [2] if strategy == "fixed" else []}
        some_trainer = ours(copy.deepcopy(small_model), tmp_path, "grpo", 0.0, "is", arguments, **nesting)
        assert equal(trained(some_trainer), stock), strategy


@pytest.mark.parametrize(
    ("strategy", "size"), [("fixed", 3), ("calibrated", 3), ("budget", 2)]
)  # the overlap of three layers is below 0.86
def test_the_layers_of_a_strategy_are_skipped_and_counted(strategy, size, small_model, tmp_path):
    nesting = Nesting(strategy=strategy, skipped_layers=[1, 2, 4] if strategy == "fixed" else [])
    arguments = {"max_steps": 2, "logging_steps": 1}
    common = {"skip_ratio": 0.5, "mitigation": "retrace", "nesting": nesting, "calibration": CALIBRATION}
    some_trainer = make(NestedGRPOTrainer, small_model, tmp_path, arguments=arguments, **common)
    some_trainer.train()
    assert [row["nesting/num_skipped"] for row in some_trainer.state.log_history[:2]] == [size, size]
    expected = choose_layers([1, 2, 3, 4], 3, 0, 1, nesting, CALIBRATION)
    assert some_trainer.step_record()["nesting/skipped_layers"] == expected and len(expected) == size
    assert some_trainer.state.log_history[1]["sampling/kl"] != 0


def test_a_strategy_that_cannot_choose_is_refused_before_training(small_model, tmp_path):
    with pytest.raises(
        NestingError, match=r"strategy calibrated needs a calibration of the layers 1 to 4 and of 1 to"
    ):
        ours(small_model, tmp_path, strategy="calibrated")
    with pytest.raises(
        NestingError, match=r"nesting.skipped_layers names 2 layers, but the skip ratio asks for 3; na"
    ):
        ours(small_model, tmp_path, strategy="fixed", skipped_layers=[1, 2])


def test_a_share_that_cannot_be_sampled_is_refused(small_model, tmp_path):
    with pytest.raises(ValueError, match=r"whole_share 0.3 is 1.2 of the 4 completions.*0 or 0.25 \(1\) or 0.5 \(2\)"):
        ours(small_model, tmp_path, whole_share=0.3)
    chosen = Sampler("engine")
    chosen.kind = "vllm"
    with pytest.raises(NestingError, match=r"the sampler vllm has an engine for one number of layers; set"):
        ours(small_model, tmp_path, sampler=chosen, whole_share=0.5)


# ---- a pretrained model ---------------------------------------------------------------------------

SHORT = {"max_steps": 3, "learning_rate": 1e-5, "num_generations": 2, "gradient_accumulation_steps": 1}
SHORT |= {"max_completion_length": 12, "temperature": 1.0}  # two prompts with two completions a step


@pytest.fixture(scope="module")
def smollm2():
    """Return SmolLM2 in float32 and its tokenizer."""
    return load_model(SMOLLM2, "float32")


@pytest.mark.slow
@pytest.mark.nightly  # the tests of a random model above are its smaller twins
@needs_smollm2
@pytest.mark.parametrize("algorithm", STOCK)
def test_smollm2_without_a_skipped_layer_is_stock_trl_bit_for_bit(algorithm, smollm2, tmp_path):
    model, tokenizer = smollm2
    common = tmp_path, algorithm, SHORT
    stock = trained(make(STOCK[algorithm], copy.deepcopy(model), *common, processing_class=tokenizer))
    moved = {name for name, start in model.state_dict().items() if not torch.equal(stock[name], start)}
    assert len(moved) > len(stock) / 2
    nesting = {"skip_ratio": 0.0, "mitigation": "retrace", "processing_class": tokenizer}
    assert equal(trained(make(NESTED[algorithm], copy.deepcopy(model), *common, **nesting)), stock)


@pytest.mark.slow
@pytest.mark.nightly  # as above
@needs_smollm2
@pytest.mark.parametrize("kind", ["generate", "engine", "engine-compiled"])
def test_every_sampler_of_smollm2_reports_the_log_probs_of_a_scoring_forward(kind, smollm2, tmp_path):
    """Without a skipped layer the ratio pi / mu is 1 at every token of every step, up to rounding in float32.

    The largest error is that of two forwards of different shapes, which round a logit of 36 differently.
    """
    model, tokenizer = smollm2
    nesting = {"skip_ratio": 0.0, "mitigation": "base", "sampler": kind, "processing_class": tokenizer}
    some_trainer = make(NestedGRPOTrainer, copy.deepcopy(model), tmp_path, arguments=SHORT, **nesting)
    errors = ratios(some_trainer).log().abs()
    assert some_trainer.sampler.kind == kind
    assert len(errors) > 60 and errors.mean() < 1e-5 and errors.max() < 4e-5, (errors.mean(), errors.max())


# ---- as users of TRL call it ----------------------------------------------------------------------

CHATS = Dataset.from_list(
    [
        {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}], "wanted": wanted}
        for prompt, wanted in zip(PROMPTS, "aeiou", strict=True)
    ]
)


def wanted_letter(prompts, completions, wanted, trainer_state, **kwargs):
    """Reward a letter that a column of the dataset names, in completions that are messages."""
    assert all([message["role"] for message in prompt] == ["system", "user"] for prompt in prompts)
    assert all([message["role"] for message in completion] == ["assistant"] for completion in completions)
    texts = [completion[0]["content"] for completion in completions]
    return [text.count(letter) / 10 + trainer_state.global_step for text, letter in zip(texts, wanted, strict=True)]


def lora(**changes):
    """Return a LoRA config as users write it: B is zero at first, and adapters are drawn at random."""
    from peft import LoraConfig

    return LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | changes)


@pytest.mark.parametrize("algorithm", STOCK)
def test_chats_with_rewards_of_ones_own_and_adapters_are_stock_trl_bit_for_bit(algorithm, small_model, tmp_path):
    """Without a skipped layer: prompts as messages, two reward functions with a column, and LoRA by `peft_config`."""

    def length(completions, **kwargs):
        return [len(completion[0]["content"]) / 9 for completion in completions]

    others = {"train_dataset": CHATS, "reward_funcs": [wanted_letter, length]}
    common = tmp_path, algorithm, {"reward_weights": [1.0, 0.5]}
    for peft_config in (None, lora()):
        others["peft_config"] = peft_config
        stock = trained(make(STOCK[algorithm], copy.deepcopy(small_model), *common, **others))
        nesting = {"skip_ratio": 0.0, "mitigation": "retrace"}
        assert equal(trained(make(NESTED[algorithm], copy.deepcopy(small_model), *common, **nesting, **others)), stock)
        adapted = {name for name in stock if "lora_B" in name}
        assert bool(adapted) == (peft_config is not None)
        assert all(stock[name].any() for name in adapted)  # B has moved away from zero


@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [
        *itertools.product(["generate", "engine"], STOCK),
        # Its forward is that of both algorithms. The compiled layers are tested without adapters by day.
        pytest.param("engine-compiled", "grpo", marks=[pytest.mark.slow, pytest.mark.nightly]),
    ],
)
def test_samplers_draw_with_the_adapters_active(kind, algorithm, small_model, tmp_path):
    """With no layer skipped, a sampler that left the adapters out would not draw from the target policy."""
    arguments = {"learning_rate": 0.1, "max_steps": 3}
    some_trainer = make(
        NESTED[algorithm],
        small_model,
        tmp_path,
        algorithm,
        arguments,
        train_dataset=CHATS,
        reward_funcs=wanted_letter,
        peft_config=lora(),
        skip_ratio=0.0,
        mitigation="base",
        sampler=kind,
    )
    seen = ratios(some_trainer)
    assert some_trainer.sampler.kind == kind
    assert len(seen) > 60 and (seen - 1).abs().max() < 1e-4
    model, ids = some_trainer.model, torch.arange(3, 13).unsqueeze(0)
    with torch.no_grad(), model.disable_adapter():
        without = model(ids).logits
    with torch.no_grad():
        assert (model(ids).logits - without).abs().max() > 0.1  # the adapters matter


def test_adapters_with_layers_skipped_train(small_model, tmp_path):
    others = {"train_dataset": CHATS, "reward_funcs": wanted_letter, "peft_config": lora(), "sampler": "engine"}
    nesting = {"skip_ratio": 0.5, "mitigation": "retrace"}
    arguments = {"max_steps": 2, "logging_steps": 1}
    some_trainer = make(NestedGRPOTrainer, small_model, tmp_path, arguments=arguments, **nesting, **others)
    some_trainer.train()
    assert some_trainer.sampler.kind == "engine" and len(some_trainer.skipped_layers) == 3
    assert some_trainer.state.log_history[-2]["sampling/kl"] > 0.01


@pytest.mark.parametrize("logging_steps", [1, 2])
def test_metrics_are_in_trls_own_log(logging_steps, small_model, tmp_path):
    """As the mean over the steps since its last log, so that stock callbacks and `report_to` receive them."""
    arguments = {"logging_steps": logging_steps, "max_steps": 4}
    logs = {}
    for steps in (1, logging_steps):
        some_trainer = ours(copy.deepcopy(small_model), tmp_path, arguments=arguments | {"logging_steps": steps})
        some_trainer.train()
        logs[steps] = [row for row in some_trainer.state.log_history if "loss" in row]
    every, some = logs[1], logs[logging_steps]
    assert len(some) == 4 // logging_steps
    for index, row in enumerate(some):
        steps = every[index * logging_steps : (index + 1) * logging_steps]
        for name in ("sampling/kl", "sampling/ess", "nesting/num_skipped", "completions/mean_length"):
            assert row[name] == pytest.approx(sum(step[name] for step in steps) / logging_steps), name
        assert row["nesting/num_skipped"] == 3 and row["nesting/skip_ratio"] == 0.5
        assert {"perf/generate_s", "perf/score_s", "perf/fwd_bwd_s", "perf/generated_tok_s"} <= set(row)
        assert all(isinstance(value, float | int) for value in row.values())


def test_a_step_whose_tokens_are_all_masked_is_logged_without_ratios(small_model, tmp_path):
    """`mask_truncated_completions` masks every completion that does not end within the longest length."""
    small_model.generation_config.eos_token_id = None
    arguments = {"mask_truncated_completions": True, "max_steps": 1, "logging_steps": 1, "max_completion_length": 2}
    arguments["generation_kwargs"] = {"min_new_tokens": 2}
    some_trainer = ours(small_model, tmp_path, arguments=arguments)
    some_trainer.train()
    row = some_trainer.state.log_history[0]
    assert row["completions/clipped_ratio"] == 1.0 and row["nesting/num_skipped"] == 3 and "sampling/kl" not in row


def test_defaults_need_only_the_ratio_and_the_mitigation(small_model, tmp_path):
    some_trainer = make(NestedGRPOTrainer, small_model, tmp_path, skip_ratio=0.5, mitigation="retrace")
    assert some_trainer.nesting == Nesting() and some_trainer.sampler.kind == "generate"
    assert some_trainer.valid_layers == [1, 2, 3, 4] and some_trainer.num_skipped == 3


def test_a_mistake_in_the_nesting_is_refused_before_training(small_model, tmp_path):
    with pytest.raises(ValueError, match="mitigation 'retrase' is not known; choose one of base, practical, retrace"):
        ours(small_model, tmp_path, mitigation="retrase")
    with pytest.raises(ValueError, match="6 layers cannot be skipped where only 4 may be"):
        ours(small_model, tmp_path, skip_ratio=1.0)


# ---- the gradient -------------------------------------------------------------------------------

RATIOS = [0.1, 0.5, 0.9, 1.1, 2.0, 10.0]
EPSILON = 0.2

# d(loss)/d(log pi), divided by -A: 1 is what an on-policy sample gets.
GRADIENTS = {
    ("base", 1.0): [0.1, 0.5, 0.9, 1.1, 0.0, 0.0],  # PPO's clip: no push further up
    ("base", -1.0): [0.0, 0.0, 0.9, 1.1, 2.0, 10.0],  # nor further down; unbounded above
    ("practical", 1.0): [1.0] * 6,
    ("practical", -1.0): [1.0] * 6,
    ("retrace", 1.0): [0.1, 0.5, 0.9, 1.0, 1.0, 1.0],  # min(1, r)
    ("retrace", -1.0): [0.1, 0.5, 0.9, 1.0, 1.0, 1.0],
    ("is", 1.0): RATIOS,
    ("is", -1.0): RATIOS,
    ("tis", 1.0): [0.1, 0.5, 0.9, 1.1, 2.0, 2.0],  # min(2, r)
    ("tis", -1.0): [0.1, 0.5, 0.9, 1.1, 2.0, 2.0],
    ("icepop", 1.0): [0.0, 0.5, 0.9, 1.1, 2.0, 0.0],  # r between 0.4 and 5
    ("icepop", -1.0): [0.0, 0.5, 0.9, 1.1, 2.0, 0.0],
    # The product of the six ratios is 0.99 and their geometric mean 0.998, so these keep the sequence.
    ("sequence_mask", 1.0): RATIOS,
    ("sequence_mask", -1.0): RATIOS,
    ("geometric_mask", 1.0): RATIOS,
    ("geometric_mask", -1.0): RATIOS,
    ("trace", 1.0): [0.1, 0.05, 0.045, 0.045, 0.045, 0.045],  # the product of min(1, r) so far
    ("trace", -1.0): [0.1, 0.05, 0.045, 0.045, 0.045, 0.045],
    ("topr", 1.0): [1.0] * 6,
    ("topr", -1.0): [0.99] * 6,  # min(1, the product)
    ("opsm", 1.0): [1.0] * 6,
    ("opsm", -1.0): [1.0] * 6,
}
PARAMETERS = {"icepop_min": 0.4}  # not 0.5, where rounding would decide

# As above, for a sequence that is far off-policy.
FAR_GRADIENTS = [
    ("sequence_mask", 1.0, [2.0, 2.0, 1.0, 1.0, 1.0, 1.0], [0.0] * 6),  # the product is 4, above 3
    ("geometric_mask", 1.0, [2.0, 1.0, 1.0, 1.0, 1.0, 1.0], [0.0] * 6),  # the geometric mean is 1.12, above 1.1
    ("geometric_mask", 1.0, [0.5, 1.0, 1.0, 1.0, 1.0, 1.0], [0.0] * 6),
    ("topr", -1.0, [0.5, 0.5, 1.0, 1.0, 1.0, 1.0], [0.25] * 6),
    ("topr", -1.0, [2.0, 2.0, 1.0, 1.0, 1.0, 1.0], [1.0] * 6),
    ("opsm", 1.0, [0.5, 1.0, 1.0, 1.0, 1.0, 1.0], [1.0] * 6),
    ("opsm", -1.0, [0.5, 1.0, 1.0, 1.0, 1.0, 1.0], [0.0] * 6),  # log 2 / 6 is 0.116, above 0.1
]


def gradient(some_trainer, monkeypatch, advantage, old_ratios=RATIOS, drift=0.0):
    """Return d(loss)/d(log pi) (6,) by autograd through TRL's loss, divided by -A.

    One completion of six tokens, r_t = pi / mu as given; pi_now is `drift` further than pi, in log.
    """
    behavior = torch.full((1, 6), math.log(0.05))
    scored = behavior + torch.tensor([old_ratios]).log()
    logps = (scored + drift).requires_grad_()
    batch = {
        "prompt_ids": torch.ones(1, 2, dtype=torch.long),
        "prompt_mask": torch.ones(1, 2, dtype=torch.long),
        "completion_ids": torch.ones(1, 6, dtype=torch.long),
        "completion_mask": torch.ones(1, 6, dtype=torch.long),
        "advantages": torch.tensor([advantage]),
        "num_items_in_batch": torch.tensor(6),
        "sampling_per_token_logps": behavior,
        "old_logps": scored.sum(1),
    }
    if drift:
        batch["old_per_token_logps"] = scored
    stock = type(some_trainer).__mro__[2]  # ours, the hooks, TRL's
    assert stock in STOCK.values()
    forward = lambda *args, **kwargs: (logps, torch.zeros(1, 6), None)  # noqa: E731
    monkeypatch.setattr(stock, "_get_per_token_logps_and_entropies", forward)
    some_trainer.model.train()
    some_trainer.current_gradient_accumulation_steps = some_trainer.args.steps_per_generation = 1
    some_trainer._compute_loss(some_trainer.model, batch).backward()
    tokens = 6 if isinstance(some_trainer, GRPOTrainer) else 1  # GRPO averages over tokens, RLOO sums
    return (logps.grad[0] * tokens / -advantage).tolist()


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_gradient_table_through_the_loss_of_grpo(loss_type, small_model, tmp_path, monkeypatch):
    """Rows of the table in docs/concepts/algorithm.md; dr_grpo divides by the longest completion, six tokens here."""
    for (mitigation, advantage), expected in GRADIENTS.items():
        some_trainer = ours(small_model, tmp_path, "grpo", 0.5, mitigation, {"loss_type": loss_type}, **PARAMETERS)
        found = gradient(some_trainer, monkeypatch, advantage)
        assert found == pytest.approx(expected, abs=1e-4), (mitigation, advantage)


def gate(ratio, temperature):
    """Return the derivative of SAPO's gate 4 / t sigmoid(t (r - 1)) by log r."""
    sigmoid = 1 / (1 + math.exp(-temperature * (ratio - 1)))
    return 4 * sigmoid * (1 - sigmoid) * ratio


# What the other losses make of `base`, by the sign of the advantage.
OF_BASE = {
    "luspo": {1.0: GRADIENTS["base", 1.0], -1.0: GRADIENTS["base", -1.0]},
    "sapo": {1.0: [gate(ratio, 1.0) for ratio in RATIOS], -1.0: [gate(ratio, 1.05) for ratio in RATIOS]},
    "cispo": {sign: [0.1, 0.5, 0.9, 1.1, 2.0, 5.0] for sign in (1.0, -1.0)},  # min(5, r), never without a gradient
}


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss["loss_type"])
def test_gradient_table_through_other_losses_of_grpo(loss, small_model, tmp_path, monkeypatch):
    """Rows as above: a mitigation outside of the loss's ratio weights the gradient of any loss of TRL."""
    kind = loss["loss_type"]
    total = 6 if kind == "luspo" else 1  # luspo sums over the tokens of a completion
    for (mitigation, advantage), row in GRADIENTS.items():
        expected = OF_BASE[kind][advantage] if mitigation == "base" else row
        found = gradient(
            ours(small_model, tmp_path, "grpo", 0.5, mitigation, loss, **PARAMETERS), monkeypatch, advantage
        )
        assert found == pytest.approx([total * weight for weight in expected], abs=1e-3), (mitigation, advantage)


def test_gradient_table_through_the_loss_of_rloo(small_model, tmp_path, monkeypatch):
    for (mitigation, advantage), expected in GRADIENTS.items():
        if mitigation != "base":
            some_trainer = ours(small_model, tmp_path, "rloo", 0.5, mitigation, **PARAMETERS)
            found = gradient(some_trainer, monkeypatch, advantage)
            assert found == pytest.approx(expected, abs=1e-4), (mitigation, advantage)
    # RLOO's ratio is the sequence's: all six tokens share it, and its clip
    some_trainer = ours(small_model, tmp_path, "rloo", 0.5, "base")
    for ratios, advantage, expected in (
        ([0.9, 1.1, 1, 1, 1, 1.0], 1.0, 0.99),
        ([2.0, 1, 1, 1, 1, 1], 1.0, 0.0),
        ([2.0, 1, 1, 1, 1, 1], -1.0, 2.0),
    ):
        found = gradient(some_trainer, monkeypatch, advantage, ratios)
        assert found == pytest.approx([expected] * 6, abs=1e-4)


@pytest.mark.parametrize("algorithm", STOCK)
def test_gradient_table_of_sequences_that_are_far_off_policy(algorithm, small_model, tmp_path, monkeypatch):
    for mitigation, advantage, ratios, expected in FAR_GRADIENTS:
        some_trainer = ours(small_model, tmp_path, algorithm, 0.5, mitigation)
        found = gradient(some_trainer, monkeypatch, advantage, ratios)
        assert found == pytest.approx(expected, abs=1e-4), (mitigation, advantage, ratios)


class NestedVLLM(GRPOTrainer):
    """Stock TRL that takes tokens and log-probs of the nested model for those of vLLM, and so corrects for them."""

    def _generate_single_turn(self, prompt_ids, *args):
        with nested(self.model, [3]), torch.no_grad():
            return sample_by_generate(self.model, prompt_ids, self.generation_config, self.eos_token_ids)


TRL_MODES = {
    "token_truncate": ("tis", "token"),
    "sequence_truncate": ("tis", "sequence"),
    "token_mask": ("icepop", "token"),
    "sequence_mask": ("sequence_mask", "sequence"),
}


def test_weights_are_the_tensors_of_trl_where_it_has_them(small_model, tmp_path):
    """Its four corrections of vLLM's samples, and its off-policy mask, on samples of the nested model."""
    arguments = {"per_device_train_batch_size": 16, "num_generations": 8, "gradient_accumulation_steps": 1}
    stock = make(NestedVLLM, small_model, tmp_path, arguments=arguments)
    stock.use_vllm, stock.vllm_generation = True, SimpleNamespace(sync_weights=lambda: None)
    stock.vllm_importance_sampling_clip_max = 1.05
    stock.model.train()
    parameters = {"truncation_cap": 1.05, "icepop_min": 0.9, "icepop_max": 1.05, "sequence_mask_cap": 1.05}
    prompts = [{"prompt": prompt} for prompt in PROMPTS[:2] for _ in range(8)]
    for mode, (mitigation, level) in TRL_MODES.items():
        stock.vllm_importance_sampling_mode = mode
        stock.vllm_importance_sampling_clip_min = 0.9 if mitigation == "icepop" else None
        batch = stock._generate_and_score_completions(prompts)
        tokens = SampledTokens(
            *(batch[name] for name in ("old_per_token_logps", "sampling_per_token_logps", "completion_mask")),
            batch["advantages"].unsqueeze(1),
        )
        weights = token_weights(mitigation, tokens, Nesting(**parameters, ratio_level=level))
        expected = batch["importance_sampling_ratio"]  # (B, T), or (B, 1)
        assert torch.equal(weights, expected.expand_as(weights)), mode
        assert 0 < (weights != tokens.ratio(level)).sum() < weights.numel(), mode  # the correction has an effect
    threshold = 0.02
    names = tokens.advantages, tokens.per_token_logps, tokens.sampling_per_token_logps, tokens.mask
    expected = GRPOTrainer.get_off_policy_mask(*names, off_policy_threshold=threshold)  # (B, 1)
    weights = token_weights("opsm", tokens, Nesting(opsm_threshold=threshold))
    assert torch.equal(weights, expected.expand_as(weights)) and 0 < expected.sum() < 16


@pytest.mark.parametrize("algorithm", STOCK)
def test_in_a_later_pass_the_weight_stays_outside_of_the_clip(algorithm, small_model, tmp_path, monkeypatch):
    """The decoupled form: h(pi_old / mu) times the gradient of the clipped pi_now / pi_old."""
    steps = 6 if algorithm == "rloo" else 1  # RLOO's ratio multiplies the drift of six tokens
    for drift, rho in ((math.log(1.1), 1.1), (math.log(1.5), 1.5)):
        for (mitigation, advantage), aligned in GRADIENTS.items():
            if mitigation == "base":
                continue
            some_trainer = ours(small_model, tmp_path, algorithm, 0.5, mitigation, **PARAMETERS)
            found = gradient(some_trainer, monkeypatch, advantage, drift=drift / steps)
            clipped = advantage > 0 and rho > 1 + EPSILON
            expected = [0.0 if clipped else rho * weight for weight in aligned]
            assert found == pytest.approx(expected, abs=1e-3), (mitigation, advantage, rho)
    if algorithm == "grpo":  # `base` has one ratio: pi_now / mu
        some_trainer = ours(small_model, tmp_path, algorithm, 0.5, "base")
        found = gradient(some_trainer, monkeypatch, 1.0, [1.0, 1.0, 1.1, 1.1, 1.0, 0.9], drift=math.log(1.15))
        assert found == pytest.approx([1.15, 1.15, 0.0, 0.0, 1.15, 1.035], abs=1e-4)


@pytest.mark.parametrize("algorithm", STOCK)
def test_the_ratio_of_a_sequence_is_the_product_of_its_tokens(algorithm, small_model, tmp_path, monkeypatch):
    product = math.prod(RATIOS)  # 0.99
    for mitigation, expected in (("is", product), ("retrace", min(1.0, product)), ("practical", 1.0)):
        some_trainer = ours(small_model, tmp_path, algorithm, 0.5, mitigation, ratio_level="sequence")
        assert gradient(some_trainer, monkeypatch, 1.0) == pytest.approx([expected] * 6, abs=1e-4)
    some_trainer = ours(small_model, tmp_path, algorithm, 0.5, "tis", ratio_level="sequence", truncation_cap=0.5)
    assert gradient(some_trainer, monkeypatch, 1.0) == pytest.approx([0.5] * 6, abs=1e-4)


def test_the_share_that_a_mitigation_modifies(small_model, tmp_path, monkeypatch):
    """Of the ratio that it takes: plain importance weights modify nothing, at either level."""
    for mitigation, level, share in (("is", "token", 0), ("is", "sequence", 0), ("tis", "token", 1 / 6)):
        some_trainer = ours(small_model, tmp_path, "grpo", 0.5, mitigation, ratio_level=level)
        gradient(some_trainer, monkeypatch, 1.0)
        metrics = some_trainer.step_metrics()
        assert metrics["sampling/frac_modified_importance_sampling_ratio"] == pytest.approx(share), (mitigation, level)


def test_the_gradient_with_a_share_of_the_whole_model_has_the_ratio_to_the_mixture(small_model, tmp_path, monkeypatch):
    """2 r / (r + 1) with equal parts, in the loss's own clip with `base`, and of the sequence with RLOO."""
    mixed = [2 * ratio / (ratio + 1) for ratio in RATIOS]
    for mitigation, expected in (("is", mixed), ("base", [*mixed[:4], 0.0, 0.0])):
        some_trainer = ours(small_model, tmp_path, "grpo", 0.5, mitigation, whole_share=0.5)
        assert gradient(some_trainer, monkeypatch, 1.0) == pytest.approx(expected, abs=1e-4), mitigation
    monkeypatch.undo()
    some_trainer = ours(small_model, tmp_path, "rloo", 0.5, "base", whole_share=0.5)
    product = [2 * 64 / 65] * 6
    assert gradient(some_trainer, monkeypatch, -1.0, [2.0] * 6) == pytest.approx(product, abs=1e-3)


def test_lambda_scales_retrace(small_model, tmp_path, monkeypatch):
    half = gradient(ours(small_model, tmp_path, retrace_lambda=0.5), monkeypatch, 1.0)
    assert half == pytest.approx([0.05, 0.25, 0.45, 0.5, 0.5, 0.5], abs=1e-4)


@pytest.mark.parametrize("algorithm", STOCK)
def test_the_reward_of_the_study_serves_stock_trl(algorithm, small_model, tmp_path):
    """An ordinary reward function: its columns come from the dataset, its timeouts go to TRL's metrics."""
    stock = make(STOCK[algorithm], small_model, tmp_path, algorithm, {"max_steps": 1, "logging_steps": 1})
    stock.reward_funcs, stock.reward_func_names = [correctness], ["correctness"]
    stock.train_dataset = stock.train_dataset.add_column("answer", ["7"] * len(PROMPTS))
    stock.train()
    logged = stock.state.log_history[0]
    assert logged["rewards/correctness/mean"] == 0.0 and logged["grading/timeouts"] == 0.0


# ---- sampling -----------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", STOCK)
def test_layers_come_back_after_an_exception_in_the_middle_of_sampling(algorithm, small_model, tmp_path, monkeypatch):
    some_trainer = ours(small_model, tmp_path, algorithm)
    note = generate.BehaviorLogProbs.note

    def fail_at_the_third(self, token_ids):
        note(self, token_ids)
        if len(self.logps) == 3:
            assert sum("forward" in vars(layer) for layer in decoder_layers(small_model)) == 3
            raise RuntimeError("midway")

    monkeypatch.setattr(generate.BehaviorLogProbs, "note", fail_at_the_third)
    with pytest.raises(RuntimeError, match="midway"):
        some_trainer.train()
    assert not any("forward" in vars(layer) for layer in decoder_layers(small_model))


@pytest.mark.parametrize("algorithm", STOCK)
def test_evaluation_never_skips(algorithm, small_model, tmp_path, monkeypatch):
    some_trainer = ours(small_model, tmp_path, algorithm)
    some_trainer.eval_dataset = some_trainer.train_dataset

    @contextlib.contextmanager
    def forbidden(model, skipped):
        raise AssertionError("nested in evaluation")
        yield

    monkeypatch.setattr(sampler, "nested", forbidden)
    monkeypatch.setattr(engine, "nested", forbidden)
    assert "eval_reward" in some_trainer.evaluate()
    with pytest.raises(AssertionError, match="nested in evaluation"):
        some_trainer.train()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_p": 0.9}, r"top_p = 0.9 \(as requested\).*set top_p to 1.0"),
        ({"top_k": 50}, "top_k = 50.*set top_k to 0"),
        ({"min_p": 0.1}, "min_p = 0.1.*set min_p to None"),
        ({"repetition_penalty": 1.1}, "repetition_penalty = 1.1.*set repetition_penalty to 1.0"),
        ({"generation_kwargs": {"typical_p": 0.5}}, "typical_p = 0.5"),
        ({"generation_kwargs": {"min_length": 200}}, "min_length = 200.*set min_length to 0"),
        ({"generation_kwargs": {"do_sample": False}}, "do_sample is off"),
    ],
)
def test_sampling_filters_are_refused_by_name(arguments, message, small_model, tmp_path):
    with pytest.raises(NestingError, match=message):
        ours(small_model, tmp_path, arguments=arguments)


@pytest.mark.parametrize("algorithm", STOCK)
def test_a_reference_model_is_refused(algorithm, tmp_path):
    """Its log-probs would be treated as those of the policy at the time of sampling."""
    model, _ = load_model(TINY, "float32")
    with pytest.raises(NestingError, match=r"beta = 0.05 asks for a reference model"):
        ours(model, tmp_path, algorithm, arguments={"beta": 0.05})


def test_a_filter_of_the_models_own_is_refused(small_model, tmp_path):
    small_model.generation_config.min_p = 0.05
    with pytest.raises(NestingError, match=r"min_p = 0.05 \(from the model's generation_config.json\)"):
        ours(small_model, tmp_path)


@pytest.mark.parametrize("name", ["use_vllm", "use_transformers_continuous_batching"])
def test_samplers_of_trl_are_refused(name, small_model, tmp_path, monkeypatch):
    some_trainer = ours(small_model, tmp_path)
    monkeypatch.setattr(some_trainer.args, name, True)
    with pytest.raises(NestingError, match=rf"{name} samples from the full model.*set {name} to False"):
        refuse_arguments(some_trainer)


def test_sampling_in_several_turns_is_refused(small_model, tmp_path):
    rollout_func = lambda prompts, trainer: {}  # noqa: E731
    with pytest.raises(NestingError, match=r"rollout_func and environment_factory replace .*; leave them out"):
        make(NestedGRPOTrainer, small_model, tmp_path, rollout_func=rollout_func, skip_ratio=0.5, mitigation="base")


def test_images_are_refused(small_model, tmp_path):
    some_trainer = ours(small_model, tmp_path)
    some_trainer.model.train()
    with pytest.raises(NestingError, match="the prompts have images"):
        some_trainer._generate_single_turn([[5]], [["image"]], {})


@pytest.mark.parametrize("algorithm", STOCK)
def test_sharded_parameters_are_refused(algorithm, small_model, tmp_path, monkeypatch):
    """TRL gathers them while it samples, and the sampler does not."""
    some_trainer = ours(small_model, tmp_path, algorithm)
    for stage in (2, 3):
        monkeypatch.setattr(some_trainer.args, "deepspeed_plugin", SimpleNamespace(zero_stage=stage))
        with pytest.raises(NestingError, match="ZeRO-3 shard") if stage == 3 else contextlib.nullcontext():
            refuse_arguments(some_trainer)
    monkeypatch.setattr(some_trainer.args, "deepspeed_plugin", None)
    refuse_arguments(some_trainer)
    monkeypatch.setattr(some_trainer, "is_fsdp_enabled", True)  # as by `accelerate launch --use_fsdp`
    for version in (1, 2):
        plugin = SimpleNamespace(fsdp_version=version)
        monkeypatch.setattr(some_trainer.accelerator.state, "fsdp_plugin", plugin, raising=False)
        with pytest.raises(NestingError, match="FSDP1 shards") if version == 1 else contextlib.nullcontext():
            refuse_arguments(some_trainer)


def test_dropout_of_a_fresh_adapter_is_refused(small_model, tmp_path):
    """It changes nothing while the adapter is zero, and everything afterwards."""
    others = {"skip_ratio": 0.5, "mitigation": "retrace", "peft_config": lora(lora_dropout=0.1)}
    with pytest.raises(NestingError, match=r"drops units at random in training.*set disable_dropout to True"):
        make(NestedGRPOTrainer, copy.deepcopy(small_model), tmp_path, arguments={"disable_dropout": False}, **others)
    make(NestedGRPOTrainer, small_model, tmp_path, **others)


def test_virtual_tokens_are_refused(small_model, tmp_path):
    from peft import PromptTuningConfig

    others = {"skip_ratio": 0.5, "mitigation": "retrace"}
    peft_config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(NestingError, match=r"PROMPT_TUNING adds virtual tokens to the prompt.*such as LoRA"):
        make(NestedGRPOTrainer, small_model, tmp_path, peft_config=peft_config, **others)


@pytest.mark.parametrize(("algorithm", "mitigation"), [("grpo", "base"), ("grpo", "retrace"), ("rloo", "retrace")])
def test_reading_each_prompt_once_changes_the_weights_only_by_rounding(algorithm, mitigation, small_model, tmp_path):
    """In float64; the micro-batches hold all completions of a prompt, and some of each of two prompts."""
    arguments = {"max_steps": 3, "optim": "sgd"}
    weights = []
    for share_prompts in (False, True):
        others = {"skip_ratio": 0.5, "mitigation": mitigation, "share_prompts": share_prompts}
        model = copy.deepcopy(small_model).double()
        weights.append(trained(make(NESTED[algorithm], model, tmp_path, algorithm, arguments, **others)))
    start = small_model.state_dict()
    for name, weight in weights[0].items():
        moved = (weight - start[name]).abs().max()
        assert moved > 0 and (weights[1][name] - weight).abs().max() < 1e-3 * moved, name


# ---- wrappers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", STOCK)
def test_gradient_checkpointing_changes_nothing(algorithm, small_model, tmp_path):
    plain = trained(ours(copy.deepcopy(small_model), tmp_path, algorithm))
    model = copy.deepcopy(small_model)
    assert equal(trained(ours(model, tmp_path, algorithm, arguments={"gradient_checkpointing": True})), plain)


@pytest.mark.parametrize(
    "kind",
    [
        "generate",
        "engine",
        pytest.param("engine-compiled", marks=[pytest.mark.slow, pytest.mark.nightly]),
        "a copy in bfloat16",
    ],
)
def test_checkpointing_bfloat16_and_adapters_work_together(kind, small_model, tmp_path):
    """Checkpointing is off while the samplers run, on again in each training forward, and changes no weight."""
    states = set()
    kwargs = {"skip_ratio": 0.5, "mitigation": "retrace", "peft_config": lora()}
    weights = []
    for checkpointing in (False, True):
        # Longer prompts would compile the layers again.
        steps = 1 if kind == "engine-compiled" else 3
        arguments = {"gradient_checkpointing": checkpointing, "bf16": True, "use_cpu": True, "max_steps": steps}
        chosen = Sampler("engine", torch.bfloat16) if "copy" in kind else Sampler(kind)
        model = copy.deepcopy(small_model)
        some_trainer = make(NestedGRPOTrainer, model, tmp_path, arguments=arguments, sampler=chosen, **kwargs)
        layers = decoder_layers(model)

        def noting(where, function, layers=layers, checkpointing=checkpointing):
            def noted(*args, **kwargs):
                flags = [layer.gradient_checkpointing for layer in layers]
                replaced = sum("forward" in vars(layer) for layer in layers)
                states.add((checkpointing, where, *sorted(set(flags)), replaced))
                return function(*args, **kwargs)

            return noted

        chosen.sample = noting("sampling", chosen.sample)
        some_trainer._compute_loss = noting("loss", some_trainer._compute_loss)
        weights.append(trained(some_trainer))
        assert chosen.kind in kind or chosen.engine.model.dtype == torch.bfloat16
    assert states == {
        *((on, "loss", on, 0) for on in (False, True)),
        *((on, "sampling", False, 0) for on in (False, True)),
    }
    assert equal(*weights)
    adapters = {name: weight for name, weight in weights[0].items() if "lora_B" in name}
    assert len(adapters) == 6 * 7 and all(weight.any() for weight in adapters.values())


def test_a_copy_of_the_weights_has_the_adapters(small_model, tmp_path):
    """Without them, the copy would not be the target policy but for rounding."""
    arguments = {"learning_rate": 0.1, "max_steps": 3}
    others = {"peft_config": lora(), "skip_ratio": 0.0, "mitigation": "base"}
    chosen = Sampler("engine", torch.bfloat16)
    some_trainer = make(NestedGRPOTrainer, small_model, tmp_path, arguments=arguments, sampler=chosen, **others)
    seen = ratios(some_trainer)
    assert chosen.kind == "engine" and chosen.engine.model is not chosen.engine.source
    assert 1e-5 < seen.log().abs().mean() < 0.05
    chosen.engine.sync_weights()  # after the last optimizer step
    copied, own = chosen.engine.model, some_trainer.model
    ids = torch.arange(3, 13).unsqueeze(0)
    with torch.no_grad(), own.disable_adapter():
        without = own(ids).logits
    with torch.no_grad():
        assert (copied(ids).logits - without).abs().mean() > 5 * (copied(ids).logits - own(ids).logits).abs().mean()


def test_adapters_are_skipped_with_their_layers_and_trained(small_model, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(small_model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    for name, parameter in model.named_parameters():
        if ".layers.2." in name and "lora" in name:
            parameter.data.fill_(float("nan"))
    ids = torch.arange(3, 13).unsqueeze(0)
    with torch.no_grad():
        assert model(ids).logits.isnan().all()
        with nested(model, [2]):
            assert model(ids).logits.isfinite().all()
    for name, parameter in model.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(0))
    start = {name: parameter.clone() for name, parameter in model.named_parameters()}
    some_trainer = ours(model, tmp_path)
    some_trainer.train()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, start[name])}
    assert changed == {name for name in start if "lora" in name}


# ---- the hooks ---------------------------------------------------------------------------------

HOOKS = {
    "_generate_single_turn": {
        "grpo": ["prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images"],
        "rloo": ["prompt_ids", "images", "multimodal_fields"],
    },
    "_generate_and_score_completions": ["inputs"],
    "_compute_loss": ["model", "inputs"],
    "_get_per_token_logps_and_entropies": [
        *("model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"),
        *("compute_aux_loss", "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask"),
        *("spatial_shapes", "num_tiles", "image_sizes", "token_type_ids", "mm_token_type_ids"),
        "image_position_ids",
    ],
    "_calculate_rewards": ["inputs", "prompts", "completions", "completion_ids_list"],
    "_get_train_sampler": ["dataset"],
    "training_step": ["model", "inputs", "num_items_in_batch"],
}


@pytest.mark.parametrize("algorithm", STOCK)
@pytest.mark.parametrize("hook", HOOKS)
def test_hooked_signatures_are_the_ones_of_trl_1_16(hook, algorithm):
    stock = STOCK[algorithm]
    found = list(inspect.signature(getattr(stock, hook)).parameters)[1:]
    expected = HOOKS[hook][algorithm] if isinstance(HOOKS[hook], dict) else HOOKS[hook]
    assert found == expected, (
        f"TRL changed {stock.__name__}.{hook}: read it, and NestedRollouts.{hook} in nested_reft/trainer.py, again; "
        "also how `old_per_token_logps` (GRPO), `old_logps` (RLOO) and `advantages` are used in its `_compute_loss`, "
        "and that it reads them after its forward"
    )
    assert hook in vars(NestedRollouts)


# ---- several ranks ------------------------------------------------------------------------------


class Ranks:
    """An accelerator of several ranks, which are called one after the other: `gather` returns the ranks' tensors."""

    device = "cpu"

    def __init__(self, num_processes):
        self.num_processes, self.tensors = num_processes, []

    def gather(self, tensor):
        self.tensors.append(tensor)
        return torch.cat(self.tensors)


def test_a_rank_that_skips_other_layers_is_named():
    ranks = Ranks(4)
    for layers in ([1, 4], [1, 4], [1, 4]):
        check_equal_layers(ranks, 7, layers)
    with pytest.raises(NestingError, match="rank 3 and rank 0 skip different layers at step 7, so that they would"):
        check_equal_layers(ranks, 7, [1, 5])
    with pytest.raises(NestingError, match="ranks 3, 4 and rank 0 skip different"):
        check_equal_layers(ranks, 6, [1, 4])  # of another step
