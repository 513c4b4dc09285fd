"""Steps of every trainer on a device, and searches that are killed, resumed elsewhere, or spread over two GPUs."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from nnunet_nas import commands
from nnunet_nas.checkpoints import read_checkpoint
from nnunet_nas.complexity import MIB
from nnunet_nas.device_memory import needed_mib
from nnunet_nas.gpu_check.outcome import Outcome, Outcomes, judged
from nnunet_nas.gpu_check.workplace import CELLS, ENCODER, Workplace, finish, trainers
from nnunet_nas.methods import DINTS, IAC_LTH, METHODS, RESIDUAL, RETROFIT, SCHEDULE
from nnunet_nas.precision import half_precision

_STEPS, _STEPS_ON_CPU = 20, 2
_SCALE = 1024
_MEMORY_ERROR = 0.15
# One of each kind of network that nnU-Net compiles; the others' graphs change.
_COMPILED = (RETROFIT, SCHEDULE)
_SEARCH, _DINTS, _RETROFIT, _SCHEDULED = (
    str(METHODS[name].trainer_name) for name in (IAC_LTH, DINTS, RETROFIT, SCHEDULE)
)


def check_steps(place: Workplace) -> Outcomes:
    """Steps of every trainer with nnU-Net's own loaders: finite losses, and a scale that did not collapse."""
    for name, (trainer_class, configuration) in trainers().items():
        before = _allocated_mib(place.device)
        trainer = place.trainer(trainer_class, configuration)
        with _training(trainer):
            found = [_losses(trainer), _memory(trainer, before), _waits(trainer)]
        del trainer
        for outcome in found:
            yield Outcome(f"{name}: {outcome.name}", outcome.status, outcome.expected, outcome.found)


def _losses(trainer: Any) -> Outcome:
    on_cuda = trainer.device.type == "cuda"
    losses, seconds = _steps(trainer, _STEPS if on_cuda else _STEPS_ON_CPU)
    name, finite = f"{len(losses)} steps on {trainer.device.type}", bool(np.isfinite(losses).all())
    timing = f"last loss {losses[-1]:.3f}, {1000 * seconds:.0f} ms per step"
    if not on_cuda:
        return judged(name, "finite losses", timing, passed=finite)
    scale = trainer.grad_scaler.get_scale()
    wanted = f"finite losses, scale at least {_SCALE}"
    return judged(name, wanted, f"{timing}, scale {scale:.0f}", passed=finite and scale >= _SCALE)


def _allocated_mib(device: torch.device) -> float:
    """MiB of tensors on a GPU, when what is no longer used is gone; 0 on other devices."""
    gc.collect()
    return torch.cuda.memory_allocated(device) / MIB if device.type == "cuda" else 0.0


@contextlib.contextmanager
def _training(trainer: Any) -> Iterator[None]:
    """Between the start of a training and its end, in an epoch that trains everything."""
    trainer.on_train_start()
    trainer.current_epoch = trainer.num_epochs - 1
    trainer.on_train_epoch_start()
    try:
        yield
    finally:
        for loader in (trainer.dataloader_train, trainer.dataloader_val):
            if hasattr(loader, "_finish"):
                loader._finish()


def _steps(trainer: Any, number: int) -> tuple[list[float], float]:
    """Losses, and seconds per step without the first, in which libraries choose their kernels."""
    losses, started = [], time.perf_counter()
    for step in range(number):
        losses.append(float(trainer.train_step(next(trainer.dataloader_train))["loss"]))
        if step == 0:
            started = time.perf_counter()
    return losses, (time.perf_counter() - started) / (number - 1)


def _memory(trainer: Any, before: float) -> Outcome:
    """Peak of a step beside what was predicted; `before`: MiB that were allocated without the trainer."""
    name, predicted = "peak memory of a step", predicted_mib(trainer)
    expected = f"within {_MEMORY_ERROR:.0%} of the {predicted:.0f} MiB predicted"
    if trainer.device.type != "cuda":
        return Outcome(name, "skipped", expected, f"not measured on {trainer.device.type}")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    trainer.train_step(next(trainer.dataloader_train))
    peak = torch.cuda.max_memory_allocated() / MIB - before
    error = peak / predicted - 1
    return judged(name, expected, f"{peak:.0f} MiB ({error:+.0%})", passed=abs(error) <= _MEMORY_ERROR)


def predicted_mib(trainer: Any) -> float:
    """MiB that a step of a trainer needs on a GPU, as trainers predict it; a teacher's weights are there as well."""
    network = trainer.network

    def build() -> Any:
        built = trainer.build_network_architecture(
            trainer.plans_manager, trainer.configuration_manager, trainer.num_input_channels,
            trainer.label_manager.num_segmentation_heads, trainer.enable_deep_supervision,
        )  # fmt: skip
        for own, other in zip(built.parameters(), network.parameters(), strict=True):
            own.requires_grad_(other.requires_grad)
        if hasattr(built, "train_only"):
            built.train_only(weights=True)
        if hasattr(network.decoder, "recompute"):
            built.decoder.recompute = network.decoder.recompute
        return built

    shape = (trainer.batch_size, trainer.num_input_channels, *trainer.configuration_manager.patch_size)
    teacher = getattr(trainer, "teacher", None)
    beside = 0 if teacher is None else sum(p.numel() * p.element_size() for p in teacher.parameters())
    return needed_mib(build, shape) + beside / MIB


def _waits(trainer: Any) -> Outcome:
    """Forward and backward of nnU-Net's loss, in which nothing may wait for the card."""
    name = "waits of the host in forward and backward"
    if trainer.device.type != "cuda":
        return Outcome(name, "skipped", "none", f"not measured on {trainer.device.type}")
    batch = next(trainer.dataloader_train)
    data = batch["data"].to(trainer.device)
    target = [part.to(trainer.device) for part in batch["target"]]
    torch.cuda.set_sync_debug_mode("error")
    try:
        with half_precision(trainer.device):
            loss = trainer.loss(trainer.network(data), target)
        trainer.grad_scaler.scale(loss).backward()
        found = "none"
    except RuntimeError as error:
        found = " ".join(str(error).split())[:200]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return judged(name, "none", found, passed=found == "none")


def check_busy(place: Workplace) -> Outcomes:
    """How long steps take, and what share of it the card computes: searches eager, the others compiled as well."""
    for name, (trainer_class, configuration) in trainers().items():
        for compiled in (False, True) if name in _COMPILED else (False,):
            trainer = place.trainer(trainer_class, configuration)
            with _training(trainer):
                if compiled:
                    trainer.network = torch.compile(trainer.network)
                _steps(trainer, 3)
                with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                    _, seconds = _steps(trainer, _STEPS)
                    torch.cuda.synchronize()
            busy = sum(event.self_device_time_total for event in profile.key_averages()) / 1e6 / _STEPS
            yield judged(
                f"{name}, {'compiled' if compiled else 'eager'}", "a number",
                f"{1000 * seconds:.1f} ms per step, the card computes {busy / seconds:.0%}", passed=seconds > 0,
            )  # fmt: skip


def check_resume(place: Workplace) -> Outcomes:
    """A search that is killed after an epoch goes on with --c, on the CPU, to its result."""
    train = ["nnUNetv2_train", place.dataset.name, "2d", "0", "-tr", _SEARCH]
    results = place.dataset.parents[1] / "nnUNet_results" / place.dataset.name
    folder = results / f"{_SEARCH}__{commands.DEFAULT_PLANS}__2d" / "fold_0"
    process = place.command(*train, "-device", place.device.type)
    while not (folder / "checkpoint_latest.pth").exists() and process.poll() is None:
        time.sleep(0.05)
    killed = process.poll() is None
    process.kill()
    process.communicate()
    finish(place.command(*train, "-device", "cpu", "--c"))
    cells = f"2d{METHODS[IAC_LTH].suffix}"
    added = [name for name in (cells, cells + RESIDUAL) if name in place.content()["configurations"]]
    yield judged(
        f"IAC-LTH killed on {place.device.type}, resumed on cpu", "killed, and its two configurations in the plans",
        f"{'killed' if killed else 'it ended by itself'}, {', '.join(added) or 'none'}",
        passed=killed and len(added) == 2,
    )  # fmt: skip


def check_two_gpus(place: Workplace) -> Outcomes:
    """nnU-Net's `-num_gpus 2` with searches, retrofit and an encoder, whose checkpoint predicts what was trained."""
    searched = {"2d": (_SEARCH, _DINTS), CELLS: (_RETROFIT,)}
    runs = [(configuration, trainer) for configuration, several in searched.items() for trainer in several]
    for configuration, trainer in [*runs, (ENCODER, _SCHEDULED)]:
        command = commands.train(int(place.dataset.name[7:10]), configuration, 0, trainer=trainer)
        finish(place.command(*command.split(), "-num_gpus", "2"))
        yield judged(f"{trainer} on two GPUs", "exit code 0", "0", passed=True)
    for name, configuration in ((RETROFIT, CELLS), (SCHEDULE, ENCODER)):
        yield _reloaded(place, name, configuration)


def _reloaded(place: Workplace, name: str, configuration: str) -> Outcome:
    """Logits of a checkpoint as it is trained on several GPUs, and as it predicts."""
    trainer_class, _ = trainers()[name]
    folder = f"{trainer_class.__name__}__{commands.DEFAULT_PLANS}__{configuration}"
    results = place.dataset.parents[1] / "nnUNet_results" / place.dataset.name
    path = results / folder / "fold_0" / "checkpoint_final.pth"
    weights = read_checkpoint(path, "run the check again", ["network_weights"])["network_weights"]
    networks = []
    for together in (True, False):
        trainer = place.trainer(trainer_class, configuration)
        trainer.initialize()
        network = trainer.network
        if together:
            network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
        network.load_state_dict(weights)
        networks.append(network.eval())
    images = torch.randn(
        1, 1, *trainer.configuration_manager.patch_size, generator=torch.Generator().manual_seed(0)
    ).to(place.device)
    with torch.no_grad():
        one, other = (network(images)[0] for network in networks)
    alike, most = bool(torch.allclose(one, other, rtol=1e-4, atol=1e-4)), (one - other).abs().max()
    return judged(f"{configuration}: checkpoint of two GPUs", "the logits of training", f"{most:.1e}", passed=alike)
