"""The static inputs of CUDA graphs, on any device. The graphs themselves are tested by `test_gpu.py`."""

import torch

from nested_reft.rollout.cuda_graphs import CUDAGraphs


def test_an_input_is_copied_once_to_a_fixed_address():
    graphs = CUDAGraphs()
    first, second = torch.ones(2), torch.full((2,), 2.0)
    static = graphs.static_input("mask", first)
    assert static is not first and torch.equal(static, first)
    static.zero_()
    assert graphs.static_input("mask", first) is static and static.sum() == 0, "the same source is not copied again"
    assert graphs.static_input("mask", second) is static and torch.equal(static, second)
    assert graphs.static_input("mask", torch.ones(3)) is not static
