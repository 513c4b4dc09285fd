"""What the searches for cells cost at most: every candidate counts as if nothing were pruned."""

from __future__ import annotations

from dataclasses import replace

import torch

from nnunet_nas.architecture import NetworkSpec, build_without_weights
from nnunet_nas.complexity import step_macs, training_shape
from nnunet_nas.iac.genotype import MOST_EXPENSIVE, cells_architecture
from nnunet_nas.iac.settings import CellSettings
from nnunet_nas.iac.supernet import IACSupernet
from nnunet_nas.search_cost import Phase
from nnunet_nas.skips.cost import frozen_step, retrofit_phases
from nnunet_nas.skips.settings import IACRetrofitSettings
from nnunet_nas.skips.unet import require_skips


def one_level(spec: NetworkSpec, settings: CellSettings) -> list[Phase]:
    """IAC-LTH: cells alone, then cells and architecture in one pass, then the trial of the found cell."""
    return _phases(spec, settings, _step(spec, settings, cells=True, architecture=True))


def bilevel(spec: NetworkSpec, settings: CellSettings) -> list[Phase]:
    """IAC: cells alone, then cells and architecture in a pass each, then the trial of the found cell."""
    cells, architecture = (_step(spec, settings, cells=trained, architecture=not trained) for trained in (True, False))
    return _phases(spec, settings, cells + architecture)


def retrofit(spec: NetworkSpec, settings: CellSettings, training: IACRetrofitSettings) -> list[Phase]:
    """The retrofit of the cells that cost most of all that can be found, for as long as its settings say."""
    return retrofit_phases(most_expensive(spec, settings), training)


def most_expensive(spec: NetworkSpec, settings: CellSettings) -> NetworkSpec:
    """A configuration with the cells that cost most of all that can be found."""
    architecture = cells_architecture(
        spec.architecture,
        MOST_EXPENSIVE,
        widths=_supernet(spec, settings).widths(),
        norm=settings.norm,
        residual=True,
    )
    return replace(spec, architecture=architecture)


def _phases(spec: NetworkSpec, settings: CellSettings, searching: int) -> list[Phase]:
    """With the MACs for one patch of an iteration after warm-up."""
    warmup = min(settings.warmup_epochs, settings.num_epochs)
    batch = settings.search_batch_size or spec.batch_size
    alone = _step(spec, settings, cells=True, architecture=False)
    phases = [
        Phase(warmup * settings.num_iterations_per_epoch, batch * alone),
        Phase((settings.num_epochs - warmup) * settings.num_iterations_per_epoch, batch * searching),
    ]
    if settings.trial_iterations:
        phases.append(Phase(settings.trial_iterations, batch * frozen_step(most_expensive(spec, settings))))
    return phases


def _step(spec: NetworkSpec, settings: CellSettings, *, cells: bool, architecture: bool) -> int:
    """MACs of a step of what is trained, for one patch."""
    network = _supernet(spec, settings)
    for parameter in network.cell_parameters():
        parameter.requires_grad_(cells)
    for parameter in network.architecture_parameters():
        parameter.requires_grad_(architecture)
    return step_macs(network, training_shape(spec))


def _supernet(spec: NetworkSpec, settings: CellSettings) -> IACSupernet:
    backbone = build_without_weights(spec, deep_supervision=True)
    require_skips(backbone, type(backbone).__name__)
    with torch.device("meta"):
        return IACSupernet(backbone, settings)
