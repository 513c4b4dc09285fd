"""What is ahead of a DiNTS search, said in its log before it starts: its cost, its time, what it may not see.

The cost is counted in multiply-accumulates, as a share of one default nnU-Net training. The time is that of a few
steps of the real supernet on random images, on the real device, extrapolated; loading, augmentation, the loss and
other processes come on top. Neither changes the search.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nnunet_nas.complexity import step_macs, training_shape
from nnunet_nas.dints.cost import mixture_macs
from nnunet_nas.dints.operations import Level
from nnunet_nas.dints.thin import lost_shares
from nnunet_nas.duration import in_words
from nnunet_nas.precision import half_precision
from nnunet_nas.training_cost import DEFAULT_STEPS, plain_step, share_of_default_training

if TYPE_CHECKING:
    from nnunet_nas.dints.trainers import nnUNetTrainerDiNTSSearch

# From this lost share on a structure is thin (our choice): a plane of one voxel loses half, one of three a sixth.
THIN = 0.3
_CASES = 4
_TIMED_STEPS = 2
# Seconds: where a step takes longer, the first one has to do.
_LONG = 20.0


def tell(trainer: nnUNetTrainerDiNTSSearch) -> None:
    """Writes it into the log."""
    trainer.print_to_log_file(cost(trainer))
    trainer.print_to_log_file(duration(trainer))
    if trainer.space.first_level > 0:
        trainer.print_to_log_file(thin_structures(trainer))


def steps(trainer: nnUNetTrainerDiNTSSearch) -> tuple[int, int]:
    """Steps of the weights and of the architecture in the whole search."""
    each = trainer.num_iterations_per_epoch
    return trainer.num_epochs * each, (trainer.num_epochs - trainer.weights_only_epochs) * each


def cost(trainer: nnUNetTrainerDiNTSSearch) -> str:
    """As a share of one default training of nnU-Net's own network, counted."""
    spec, settings = trainer.base_spec(), trainer.settings
    per_patch = _step_macs(trainer)
    relative = [trainer.batch_size * macs / (spec.batch_size * plain_step(spec)) for macs in per_patch]
    shares = [share_of_default_training(number, each) for number, each in zip(steps(trainer), relative, strict=True)]
    races = ""
    if settings.selection == "evidence":
        races = f"; {settings.finalists} trainings of {settings.race_iterations} steps come on top"
    return (
        f"Cost, as a share of one default nnU-Net training of {trainer.configuration_name} ({DEFAULT_STEPS} steps) and "
        f"counted in multiply-accumulates: this search {sum(shares):.3f} ({steps(trainer)[0]} steps of the weights, "
        f"each {relative[0]:.2f} of a plain one, {steps(trainer)[1]} of the architecture, {relative[1]:.2f}){races}. "
        f"Seconds are more: the many small convolutions of a supernet use a device badly."
    )


def _step_macs(trainer: nnUNetTrainerDiNTSSearch) -> tuple[float, float]:
    """Multiply-accumulates for one patch of a step of the weights and of one of the architecture."""
    drawn = trainer.draw_topologies(0)[:_CASES]
    if drawn:
        network = trainer.meta_supernet(trainer.settings)
        found = []
        for topology in drawn:
            with network.computing(topology):
                found.append(step_macs(network, training_shape(trainer.base_spec())))
        return float(np.mean(found)), 0.0
    return mixture_macs(trainer.base_spec(), trainer.space, trainer.settings)


def duration(trainer: nnUNetTrainerDiNTSSearch) -> str:
    """Of the whole search, from a few steps of each kind."""
    image = torch.randn(
        trainer.batch_size,
        trainer.num_input_channels,
        *trainer.configuration_manager.patch_size,
        generator=torch.Generator().manual_seed(0),
    ).to(trainer.device)
    drawn = trainer.draw_topologies(0)[:1]
    numbers, seconds = steps(trainer), [0.0, 0.0]
    with _undisturbed(trainer.network):
        for kind, weights in enumerate((True, False)):
            if numbers[kind]:
                trainer.train_only(weights=weights)
                seconds[kind] = seconds_per_step(lambda: _step(trainer, image, drawn), trainer.device)
    total = sum(number * each for number, each in zip(numbers, seconds, strict=True))
    return (
        f"Time: {seconds[0]:.2g} s for a step of the weights and {seconds[1]:.2g} s for one of the architecture, as "
        f"measured now on {trainer.device.type}: this search takes {in_words(total)} at least, without loading, "
        f"augmentation and what else the machine does"
    )


@contextlib.contextmanager
def _undisturbed(network: torch.nn.Module) -> Iterator[None]:
    """Inside it is as in training; what its normalisations remember and its gradients are afterwards as before."""
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    training = network.training
    network.train()
    try:
        yield
    finally:
        for name, buffer in network.named_buffers():
            buffer.copy_(buffers[name])
        network.train(training)
        network.zero_grad(set_to_none=True)


def _step(trainer: nnUNetTrainerDiNTSSearch, image: torch.Tensor, drawn: list[Any]) -> None:
    with trainer.network.computing(drawn[0] if drawn else None), half_precision(trainer.device):
        outputs = trainer.network(image)
    sum(output.float().square().mean() for output in outputs).backward()


def seconds_per_step(
    step: Callable[[], None], device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Shortest of a few, after one that is not counted unless it takes long."""
    taken = []
    for _ in range(1 + _TIMED_STEPS):
        _wait(device)
        started = clock()
        step()
        _wait(device)
        taken.append(clock() - started)
        if taken[0] > _LONG:
            return taken[0]
    return min(taken[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def thin_structures(trainer: nnUNetTrainerDiNTSSearch) -> str:
    """Which share of the structures in a few training cases is finer than the finest cells."""
    block = [int(step) for step in np.prod([level.stride for level in _finer_levels(trainer)], axis=0)]
    cases = sorted(trainer.do_split()[0])[:_CASES]
    voxels, lost = _counted(trainer, cases, block)
    begin = f"Cells begin at a resolution of {'x'.join(map(str, block))} voxels"
    if not sum(voxels.values()):
        return f"{begin}; {len(cases)} cases have no foreground to judge by"
    shares = {value: lost[value] / number for value, number in voxels.items() if number}
    worst = max(shares, key=lambda value: shares[value])
    text = (
        f"{begin}: where one voxel stands for such a block, {shares[worst]:.0%} of label {worst} is lost in "
        f"{len(cases)} cases, of all labels {sum(lost.values()) / sum(voxels.values()):.0%}"
    )
    if shares[worst] < THIN:
        return text
    final = "" if trainer.space.final_conv else ", or final_conv=true"
    return (
        f"{text}. That is thin, and cells at half resolution have cost thin structures much of their Dice: consider "
        f"{trainer.set_search('first_level=0')}, which needs more memory and time{final}"
    )


def _finer_levels(trainer: nnUNetTrainerDiNTSSearch) -> list[Level]:
    """From the image to the first level with cells."""
    return trainer.space.levels[: trainer.space.first_level + 1]


def _counted(
    trainer: nnUNetTrainerDiNTSSearch, cases: list[str], block: list[int]
) -> tuple[dict[int, int], dict[int, float]]:
    """Voxels of each label in preprocessed cases, and lost ones."""
    classes = [int(value) for value in trainer.label_manager.foreground_labels]
    voxels, lost = dict.fromkeys(classes, 0), dict.fromkeys(classes, 0.0)
    data = trainer.dataset_class(trainer.preprocessed_dataset_folder, cases)
    for case in cases:
        label = np.asarray(data.load_case(case)[1][0])
        for value, (number, gone) in lost_shares(label, block, classes).items():
            voxels[value] += number
            lost[value] += gone
    return voxels, lost
