"""The static KV cache: which buffers are allocated, and what attention reads from them."""

import torch

from nested_reft.rollout.engine import RolloutEngine
from nested_reft.rollout.kv_cache import CachePositions, LayerKVView, PrefillRows, StaticKVLayer
from nested_reft.rollout.token_sampling import SamplingParams
from tests.model.families import PROMPTS


def test_buffers_are_allocated_once_and_not_for_a_layer_that_never_ran(small_model):
    engine, sampling = RolloutEngine(small_model), SamplingParams(max_new_tokens=5, fixed_length=True)
    engine.sample(PROMPTS, sampling, seed=0, skipped=[2])
    assert [layer.is_initialized for layer in engine.cache.layers].count(False) == 1
    address = engine.cache.layers[0].keys.data_ptr()
    engine.sample(PROMPTS, sampling, seed=0, step=1, skipped=[2])
    assert engine.cache.layers[0].keys.data_ptr() == address


def test_rows_write_at_their_own_positions():
    """Two rows of one prompt of 3 tokens and one of 2; then each row stores a token behind its prompt."""
    positions = CachePositions(batch_size=3, num_columns=8, device=torch.device("cpu"))
    layer = StaticKVLayer(positions)
    prompt_keys, prompt_values = torch.randn(2, 1, 3, 4), torch.randn(2, 1, 3, 4)  # (prompts, K, T, D)
    positions.prefill_rows = PrefillRows(torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]))
    layer.update(prompt_keys, prompt_values)
    positions.prefill_rows = None

    positions.start([0, 1, 2], [3, 3, 2])
    positions.attended_columns = 4
    token_keys, token_values = torch.randn(3, 1, 1, 4), torch.randn(3, 1, 1, 4)
    keys, values = layer.update(token_keys, token_values)
    for stored, prompt, token in ((keys, prompt_keys, token_keys), (values, prompt_values, token_values)):
        assert stored.shape == (3, 1, 4, 4)
        for row, (prompt_index, length) in enumerate([(0, 3), (0, 3), (1, 2)]):
            expected = torch.cat([prompt[prompt_index, :, :length], token[row]], dim=1)
            assert torch.equal(stored[row, :, : length + 1], expected)

    view = LayerKVView(layer.keys, layer.values, positions.positions, positions.attended_columns)
    for stored, seen in zip((keys, values), view.update(token_keys, token_values), strict=True):
        assert torch.equal(stored, seen), "a compiled layer reads what the layer's own forward reads"


def test_positions_on_the_host_follow_those_on_the_device():
    positions = CachePositions(batch_size=3, num_columns=8, device=torch.device("cpu"))
    positions.start([0, 2], [4, 1])
    positions.advance()
    assert positions.positions.tolist() == positions.positions_on_host == [5, 1, 2]
    positions.reset(torch.tensor([True, False, False]), [0])
    assert positions.positions.tolist() == positions.positions_on_host == [0, 1, 2]
