"""The discrete cell in few calls against the same cell operation by operation."""

import pytest
import torch
from torch import nn

from nnunet_nas.gpu_check.fake_cuda import DEVICE, fake_cuda
from nnunet_nas.iac import cell as cells
from nnunet_nas.iac.cell import Cell
from nnunet_nas.iac.genotype import MOST_EXPENSIVE, Genotype
from nnunet_nas.iac.joined import Group, groups_of, joined

MIXED = Genotype.from_json(
    {
        "2": {"0": "sep_conv_3", "1": "identity"},
        "3": {"0": "sep_conv_5", "2": "dil_conv_3"},
        "4": {"1": "max_pool_3", "3": "dil_conv_5"},
        "5": {"2": "avg_pool_3", "4": "sep_conv_5"},
    }
)
CHAIN = Genotype.from_json(
    {
        "2": {"0": "sep_conv_3", "1": "sep_conv_3"},
        "3": {"0": "dil_conv_5", "2": "sep_conv_3"},
        "4": {"2": "sep_conv_3", "3": "sep_conv_3"},
        "5": {"0": "sep_conv_3", "1": "dil_conv_5"},
    }
)
WITHOUT_WEIGHTS = Genotype.from_json(
    {
        "2": {"0": "identity", "1": "max_pool_3"},
        "3": {"0": "avg_pool_3", "1": "identity"},
        "4": {"2": "identity", "3": "identity"},
        "5": {"0": "identity", "2": "max_pool_3"},
    }
)
ALL = [MOST_EXPENSIVE, MIXED, CHAIN, WITHOUT_WEIGHTS]


def make(genotype, *, kernel=(3, 3), residual=False, norm=None):
    """A cell in which no weight is what it starts as."""
    torch.manual_seed(0)
    flat = len(kernel) == 2
    made = Cell(
        genotype, skip_channels=6, width=4, conv_op=nn.Conv2d if flat else nn.Conv3d,
        norm=norm or (nn.InstanceNorm2d if flat else nn.InstanceNorm3d), norm_kwargs={"eps": 1e-5, "affine": True},
        level_kernel=kernel, residual=residual,
    )  # fmt: skip
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


def step(run, cell, given):
    """Output and all gradients, those of the inputs too."""
    given = [x.clone().requires_grad_() for x in given]
    output = run(*given)
    cell.zero_grad(set_to_none=True)
    output.square().sum().backward()
    return output.detach(), [x.grad for x in given], {name: p.grad for name, p in cell.named_parameters()}


def test_edges_of_one_convolution_are_together_as_soon_as_one_is_asked_for():
    # Positions: 0>2, 1>2, 0>3, 2>3, 2>4, 3>4, 0>5, 1>5.
    assert groups_of(MOST_EXPENSIVE) == (Group("sep_conv_5", tuple(range(8))),)
    assert groups_of(CHAIN) == (
        Group("sep_conv_3", (0, 1, 6)),
        Group("dil_conv_5", (2, 7)),
        Group("sep_conv_3", (3, 4)),
        Group("sep_conv_3", (5,)),
    )
    assert [group.edges for group in groups_of(WITHOUT_WEIGHTS)] == [(number,) for number in range(8)]


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("kernel", [(3, 3), (3, 3, 3), (1, 3, 3)])
@pytest.mark.parametrize("genotype", ALL)
def test_outputs_and_gradients_are_those_of_the_plain_cell(genotype, kernel, residual):
    cell = make(genotype, kernel=kernel, residual=residual).double()
    given = [torch.randn(3, 6, *(7, 6, 5)[: len(kernel)], dtype=torch.float64) for _ in range(2)]
    before = [x.clone() for x in given]
    output, inputs, weights = step(cell.plain, cell, given)
    ours, ours_inputs, ours_weights = step(lambda *x: joined(cell, *x), cell, given)
    torch.testing.assert_close(ours, output, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours_inputs, inputs, rtol=1e-9, atol=1e-9)
    assert weights.keys() == ours_weights.keys()
    for name, gradient in weights.items():
        torch.testing.assert_close(ours_weights[name], gradient, rtol=1e-8, atol=1e-8, msg=name)
    assert all(x.equal(then) for x, then in zip(given, before, strict=True))


def test_autocast_has_the_same_types():
    cell, given = make(MIXED), [torch.randn(2, 6, 8, 8) for _ in range(2)]
    with torch.autocast("cpu", torch.bfloat16):
        output, ours = cell.plain(*given), joined(cell, *given)
    assert ours.dtype == output.dtype == torch.bfloat16
    assert (ours - output).norm() < 0.05 * output.norm()


def way_of(cell, monkeypatch, device):
    monkeypatch.setattr(cells, "joined", lambda cell, skip, up: "joined")
    monkeypatch.setattr(Cell, "plain", lambda self, skip, up: "plain")
    return cell(*(torch.zeros(1, 6, 8, 8, device=device) for _ in range(2)))


def test_a_gpu_computes_cells_of_instance_norms_in_few_calls(monkeypatch):
    assert way_of(make(MIXED), monkeypatch, "cpu") == "plain"
    assert way_of(make(MIXED), monkeypatch, "meta") == "plain"
    with fake_cuda():
        assert way_of(make(MIXED), monkeypatch, DEVICE) == "joined"
        # Running statistics are each edge's own.
        assert way_of(make(MIXED, norm=nn.BatchNorm2d), monkeypatch, DEVICE) == "plain"
