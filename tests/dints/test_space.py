"""The search space that plans and settings give, and the configuration that a topology becomes."""

import copy

import pytest
from fake_dataset import plain_unet
from torch import nn

from nnunet_nas.architecture import NetworkSpec, build_without_weights
from nnunet_nas.dints.settings import DiNTSSettings
from nnunet_nas.dints.space import Space, level_features
from nnunet_nas.dints.topology import Topology
from nnunet_nas.dints.trainers import learning_rate
from nnunet_nas.errors import DataProblem

# As nnU-Net plans an anisotropic data set: the patch is 16 x 80 x 56.
KERNELS = [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]]
STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 1]]


def architecture(stages=5, dimensions=3, network="unet.PlainConvUNet", **changes):
    """One of nnU-Net's, with `changes` of its `arch_kwargs`."""
    kernels = [kernel[-dimensions:] for kernel in KERNELS[:stages]]
    strides = [stride[-dimensions:] for stride in STRIDES[:stages]]
    entry = plain_unet(dimensions, strides, kernels, [32, 64, 128, 256, 320][:stages])
    entry["network_class_name"] = f"dynamic_network_architectures.architectures.{network}"
    entry["arch_kwargs"] |= changes
    return entry


def without(*keys):
    found = architecture()
    for key in keys:
        del found["arch_kwargs"][key]
    return found


def test_geometry_and_blocks_come_from_the_plans():
    space = Space(architecture(), DiNTSSettings(first_level=0))
    assert [level.kernel for level in space.levels] == [tuple(kernel) for kernel in KERNELS]
    assert [level.stride for level in space.levels] == [tuple(stride) for stride in STRIDES]
    assert [level.features for level in space.levels] == [32, 64, 128, 256, 320]
    # The paper searches with half of the channels.
    assert [level.features for level in space.search_levels] == [16, 32, 64, 128, 160]
    assert [level.stride for level in space.search_levels] == [level.stride for level in space.levels]
    assert space.blocks.conv_op is nn.Conv3d
    assert space.blocks.norm_op is nn.InstanceNorm3d
    assert space.blocks.conv_bias
    assert space.names == ("skip", "conv", "yx_z", "zx_y", "zy_x")
    assert Space(architecture(dimensions=2), DiNTSSettings()).names == ("skip", "conv", "y_x", "dilated")


@pytest.mark.parametrize(
    ("given", "first_level", "stages"),
    [
        ({"dimensions": 3}, 1, 5),
        ({"dimensions": 3, "stages": 4}, 1, 4),
        ({"dimensions": 3, "stages": 3}, 0, 3),
        ({"dimensions": 2}, 0, 5),
    ],
)
def test_3d_starts_at_half_resolution_where_there_are_stages_enough(given, first_level, stages):
    space = Space(architecture(**given), DiNTSSettings())
    assert (space.first_level, len(space.levels)) == (first_level, stages)


def test_levels_and_channels_can_be_chosen():
    space = Space(architecture(), DiNTSSettings(first_level=1, num_levels=3, features=16, search_features=4))
    assert [level.features for level in space.levels] == [16, 32, 64, 128]
    assert [level.features for level in space.search_levels] == [4, 8, 16, 32]
    assert len(space.levels) == 4


def test_channels_keep_the_proportions_of_the_plans():
    assert level_features([32, 64, 128, 320, 320], 4, None) == [32, 64, 128, 320]
    assert level_features([32, 64, 128, 320, 320], 5, 8) == [8, 16, 32, 80, 80]
    assert level_features([32, 64, 320], 3, 1) == [1, 2, 10]
    assert level_features(24, 3, None) == [24, 24, 24]
    assert level_features([64, 32], 2, 1) == [1, 1]  # not 0


@pytest.mark.parametrize(
    ("given", "settings", "message"),
    [
        (architecture(stages=2), {}, "2 levels from stage 0 on do not fit the plan's 2 stages.*3 stages"),
        (architecture(), {"first_level": 0, "num_levels": 6}, "6 levels from stage 0 on do not fit the plan's 5"),
        (architecture(), {"first_level": 2, "num_levels": 4}, "4 levels from stage 2 on"),
        (architecture(), {"first_level": 4}, "1 levels from stage 4 on.*at least 2 levels"),
        (architecture(), {"first_level": 0, "num_levels": 2}, "2 levels from stage 0 on.*set num_levels"),
        (architecture(dropout_op="torch.nn.Dropout3d"), {}, "DiNTS has no dropout"),
        (architecture(conv_op="torch.nn.Conv9d"), {}, "Conv9d cannot be imported"),
        (without("n_stages"), {}, "no n_stages: choose one of nnU-Net's U-Nets"),
        (without("strides"), {}, "no strides"),
        (architecture(kernel_sizes=[[3, 3, 4]] * 5), {}, "kernel .* has an even size"),
    ],
)
def test_what_does_not_fit_is_refused(given, settings, message):
    with pytest.raises(DataProblem, match=message):
        Space(given, DiNTSSettings(**settings))


def test_a_patch_must_be_whole_at_every_level():
    space = Space(architecture(), DiNTSSettings())
    space.require_divisible([16, 80, 56])
    with pytest.raises(DataProblem, match="16x80x60 is not divisible by 8 along axis 2.*num_levels"):
        space.require_divisible([16, 80, 60])
    Space(architecture(), DiNTSSettings(num_levels=2)).require_divisible([16, 80, 60])


TOPOLOGY = {"levels": 3, "layers": [{"0->0": "conv", "0->1": "skip"}, {"0->1": "zx_y", "1->2": "skip"}]}


@pytest.mark.parametrize("network", ["unet.PlainConvUNet", "unet.ResidualEncoderUNet"])
def test_a_topology_becomes_a_configuration_that_nnunet_can_build(network):
    given = architecture(network=network)
    before = copy.deepcopy(given)
    space = Space(given, DiNTSSettings(first_level=1, num_levels=3, features=8))
    found = space.network(TOPOLOGY)
    assert found["network_class_name"] == "nnunet_nas.dints.network.DiNTSNet"
    kwargs, base = found["arch_kwargs"], given["arch_kwargs"]
    assert kwargs["strides"] == STRIDES[:4]
    assert kwargs["kernel_sizes"] == KERNELS[:4]
    assert kwargs["features_per_stage"] == [8, 16, 32, 64]
    assert (kwargs["n_stages"], kwargs["first_level"]) == (4, 1)
    assert Topology.from_json(kwargs["topology"]).to_json() == TOPOLOGY
    for key in ("conv_op", "conv_bias", "norm_op", "norm_op_kwargs", "nonlin", "nonlin_kwargs", "dropout_op"):
        assert kwargs[key] == base[key]
    assert not [key for key in kwargs if key.startswith("n_conv") or key.startswith("n_blocks")]
    assert set(found["_kw_requires_import"]) <= set(kwargs)
    built = build_without_weights(NetworkSpec(found, 1, 2, (16, 80, 56), 2))
    assert type(built).__name__ == "DiNTSNet"
    # The plans are not shared with the result.
    kwargs["strides"][0][0] = 7
    kwargs["norm_op_kwargs"]["eps"] = 7
    assert given == before
    assert space.network(TOPOLOGY)["arch_kwargs"]["strides"] == STRIDES[:4]


def test_the_learning_rate_by_hand():
    # 2100 iterations: 100 of warm-up, from 0.025 to 0.2; halved 800 and 1600 later.
    expected = {0: 0.025, 50: 0.1125, 100: 0.2, 899: 0.2, 900: 0.1, 1699: 0.1, 1700: 0.05, 2099: 0.05}
    for step, rate in expected.items():
        assert learning_rate(step, 2100, start=0.025, peak=0.2) == pytest.approx(rate), step


def test_the_learning_rate_of_a_short_search_is_defined():
    assert learning_rate(0, 2, start=0.025, peak=0.2) == pytest.approx(0.025)
    # One of two steps is behind the halving at 8/20: (1 - 2/21) / (2 - 2/21) = 0.475.
    assert learning_rate(1, 2, start=0.025, peak=0.2) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"first_level": 0}, False),
        ({"first_level": 1}, True),
        ({"first_level": 1, "final_conv": False}, False),
        ({"first_level": 0, "final_conv": True}, True),
    ],
    ids=str,
)
def test_a_convolution_stands_at_the_full_resolution_where_no_cells_do(settings, expected):
    space = Space(architecture(), DiNTSSettings(**settings))
    kwargs = space.network({"levels": 1, "layers": [{"0->0": "conv"}]})["arch_kwargs"]
    assert space.final_conv == kwargs.get("final_conv", False) == expected
