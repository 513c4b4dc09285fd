"""Averages over processes, with the process group replaced by one that doubles."""

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from nnunet_nas import distributed


class Names(TorchDispatchMode):
    """Operations that were called."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


def test_gradients_are_averaged_in_one_sum_and_one_copy(monkeypatch):
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((2, 3), (4,), (1, 2, 2), (5,))]
    for number, parameter in enumerate(parameters[:3]):
        parameter.grad = torch.full_like(parameter, float(number + 1))
    gradients = [parameter.grad for parameter in parameters[:3]]
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda flat: flat.mul_(4))
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 2)
    with Names() as names:
        distributed.average_gradients(parameters)
    assert [parameter.grad is own for parameter, own in zip(parameters, gradients, strict=False)] == [True] * 3
    assert parameters[3].grad is None
    for number, gradient in enumerate(gradients):
        assert (gradient == 2 * (number + 1)).all()
    assert names.seen.count("aten::_foreach_copy_") == 1
    assert "aten::copy_" not in names.seen
