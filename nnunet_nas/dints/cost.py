"""What a DiNTS search costs at most: the relaxed network of all edges and operations, or one that is as large."""

from __future__ import annotations

from dataclasses import replace

import torch

from nnunet_nas.architecture import NetworkSpec
from nnunet_nas.complexity import step_macs, training_shape
from nnunet_nas.dints.settings import DiNTSSettings
from nnunet_nas.dints.space import Space
from nnunet_nas.dints.supernet import build_supernet
from nnunet_nas.dints.topology import edges
from nnunet_nas.search_cost import Phase
from nnunet_nas.training_cost import plain_step

# Of the paper's 21k iterations 11k train network weights only.
_WEIGHTS_ONLY_SHARE = 11 / 21
# Layers from here on cost the same: before the first one there is nothing that the architecture's gradient has to pass.
_FEWEST_LAYERS = 2
# A forward pass beside a training step.
_FORWARD = 1 / 3


def weights_only_epochs(settings: DiNTSSettings) -> int:
    """Epochs before the architecture is trained; one at least is left for it, unless it is not trained at all."""
    if settings.weights_on == "samples":
        return settings.num_epochs
    return int(min(round(_WEIGHTS_ONLY_SHARE * settings.num_epochs), settings.num_epochs - 1))


def phases(spec: NetworkSpec, settings: DiNTSSettings) -> list[Phase]:
    """Steps of the weights, then of weights and architecture, then what `evidence` scores and trains."""
    space = Space(spec.architecture, settings)
    space.require_divisible(spec.patch_size)
    batch = settings.search_batch_size or spec.batch_size
    weights, architecture = (batch * macs for macs in mixture_macs(spec, space, settings))
    alone = weights_only_epochs(settings)
    both = settings.num_epochs - alone
    found = [
        Phase(alone * settings.num_iterations_per_epoch, weights),
        Phase(both * settings.num_iterations_per_epoch, weights + architecture),
    ]
    return found + (_evidence(spec, space, settings, weights) if settings.selection == "evidence" else [])


def _evidence(spec: NetworkSpec, space: Space, settings: DiNTSSettings, weights: float) -> list[Phase]:
    """Scores of samples with shared weights, then short trainings, of which none is larger than the whole network."""
    pairs = [f"{source}->{end}" for source, end in edges(len(space.levels) - space.first_level)]
    topology = {
        "levels": len(space.levels) - space.first_level,
        "layers": [dict.fromkeys(pairs, "conv") for _ in range(settings.num_layers)],
    }
    batch = settings.search_batch_size or spec.batch_size
    whole = batch * plain_step(replace(spec, architecture=space.network(topology)))
    finalists = settings.most_finalists
    return [
        Phase((1 + settings.samples) * settings.scoring_batches, _FORWARD * weights),
        Phase(finalists * settings.race_iterations, whole),
        Phase(finalists * settings.scoring_batches, _FORWARD * whole),
    ]


def mixture_macs(spec: NetworkSpec, space: Space, settings: DiNTSSettings) -> tuple[float, float]:
    """Multiply-accumulates for one patch of a step of the weights and of one of the architecture, all edges mixed."""
    few, more = (_mixture_macs(spec, space, replace(settings, num_layers=_FEWEST_LAYERS + n)) for n in (0, 1))
    further = settings.num_layers - _FEWEST_LAYERS
    weights, architecture = (fewest + further * (next_one - fewest) for fewest, next_one in zip(few, more, strict=True))
    return weights, architecture


def _mixture_macs(spec: NetworkSpec, space: Space, settings: DiNTSSettings) -> list[int]:
    with torch.device("meta"):
        network = build_supernet(space, settings, spec.input_channels, spec.output_channels)
    found = []
    for weights in (True, False):
        network.train_only(weights=weights)
        found.append(step_macs(network, training_shape(spec)))
    return found
