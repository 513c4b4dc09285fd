"""Whether the modules in the skips are computed again in the backward pass, so that a step fits its GPU.

What autograd keeps of searched cells is up to twice what it keeps of their backbone. Computed again, they keep their
two inputs only; numbers and random states stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from nnunet_nas.device_memory import available_mib, needed_mib, require_fit
from nnunet_nas.errors import DataProblem


def has_batch_norms(network: Any) -> bool:
    """Whether modules in the skips update running statistics, which must happen once a step."""
    norms = (nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    return any(isinstance(part, norms) for part in network.decoder.skip_modules.modules())


def recomputes(
    trainer: Any, network: Any, build: Callable[[], Any], shape: Sequence[int], *, what: str, advice: str
) -> bool:
    """Decides, and says what a step needs where the device is a GPU.

    Args:
        trainer: with `settings.recompute`, its device and its log.
        network: that is trained.
        build: makes the same again, on torch's default device.
        shape: of the images of a step.
        what: needs the memory, for messages.
        advice: how to need less.

    Raises:
        EnvironmentProblem: the GPU is too small in any case.
        DataProblem: recomputing is asked for where it cannot be done.
    """
    wanted, impossible = trainer.settings.recompute, has_batch_norms(network)
    if wanted == "always" and impossible:
        raise DataProblem(
            f"recompute=always would update the running statistics of batch norms twice in a step: set recompute=never "
            f"for {what}"
        )
    recompute, available = bool(wanted == "always"), available_mib(trainer.device)
    if available is None:
        return recompute
    needed = _needed(build, shape, recompute=recompute)
    if needed > available and wanted == "auto" and not impossible:
        needed, recompute = _needed(build, shape, recompute=True), True
    how = ", cells computed again in the backward pass" if recompute else ""
    trainer.print_to_log_file(f"{what} needs {needed:.0f} MiB in mixed precision{how}; the GPU has {available:.0f}")
    require_fit(what, needed, available, advice)
    return recompute


def _needed(build: Callable[[], Any], shape: Sequence[int], *, recompute: bool) -> float:
    def made() -> nn.Module:
        network: Any = build()
        network.decoder.recompute = recompute
        return network

    return needed_mib(made, shape)
