"""The checks in one table, and how they are run."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from nnunet_nas.diagnosis import diagnose
from nnunet_nas.gpu_check import agreement, training
from nnunet_nas.gpu_check.outcome import Outcome, Outcomes, guarded, judged
from nnunet_nas.gpu_check.workplace import Workplace, workplace


@dataclass(frozen=True)
class Group:
    """Checks that are chosen together.

    Attributes:
        run: what makes their outcomes.
        cards: CUDA GPUs that they need.
        data: whether they train on the phantom; `run` then takes the workplace.
    """

    run: Callable[..., Outcomes]
    cards: int = 0
    data: bool = False


def check_doctor() -> Outcomes:
    """What `nnunet_nas doctor` calls a problem; nnU-Net's folders are not needed here."""
    problems = [f"{row.name}: {row.found}" for row in diagnose() if row.status == "problem"]
    problems = [problem for problem in problems if not problem.startswith("nnUNet_")]
    yield judged("doctor", "no problems", "; ".join(problems) or "none", passed=not problems)


def groups(device: torch.device, *, quick: bool) -> dict[str, Group]:
    """All checks by the name that chooses them, in the order in which they are run."""
    return {
        "doctor": Group(check_doctor),
        "networks": Group(partial(agreement.check_networks, device, quick=quick)),
        "half": Group(partial(agreement.check_half_precision_without_a_card, quick=quick)),
        "norms": Group(partial(agreement.check_several_gpus_network, quick=quick)),
        "scores": Group(partial(agreement.check_scores, device)),
        "compile": Group(partial(agreement.check_compilation, device, quick=quick)),
        "steps": Group(training.check_steps, data=True),
        "resume": Group(training.check_resume, data=True),
        "busy": Group(training.check_busy, cards=1, data=True),
        "two_gpus": Group(training.check_two_gpus, cards=2, data=True),
    }


NAMES = ("doctor", "networks", "half", "norms", "scores", "compile", "steps", "resume", "busy", "two_gpus")


class _Held:
    """The workplace, made when it is first needed."""

    def __init__(self, device: torch.device, stack: contextlib.ExitStack) -> None:
        self._device, self._stack = device, stack
        self._place: Workplace | None = None

    def place(self) -> Workplace:
        if self._place is None:
            self._place = self._stack.enter_context(workplace(self._device))
        return self._place


def _on_data(check: Callable[[Workplace], Outcomes], held: _Held) -> Outcomes:
    yield from check(held.place())


def _quietly(found: Outcomes) -> Outcomes:
    """The same outcomes; what is printed while one is found goes to standard error."""
    while True:
        with contextlib.redirect_stdout(sys.stderr):
            outcome = next(found, None)
        if outcome is None:
            return
        yield outcome


def run(device: torch.device, only: Sequence[str], *, quick: bool, tell: Callable[[Outcome], object]) -> list[Outcome]:
    """Runs the chosen checks; what nnU-Net prints goes to standard error.

    Args:
        device: to check.
        only: names of groups; empty for all.
        quick: one network of each kind.
        tell: is called with every outcome as soon as it is known.
    """
    chosen = {name: group for name, group in groups(device, quick=quick).items() if not only or name in only}
    cards = torch.cuda.device_count() if device.type == "cuda" else 0
    outcomes = []

    def keep(found: Outcomes) -> None:
        for outcome in found:
            outcomes.append(outcome)
            tell(outcome)

    with contextlib.ExitStack() as stack:
        held = _Held(device, stack)
        for name, group in chosen.items():
            if group.cards > cards:
                needs = f"{group.cards} CUDA GPU{'s' * (group.cards > 1)}"
                keep(iter([Outcome(name, "skipped", f"a machine with {needs}", f"{cards} here")]))
                continue
            check = partial(_on_data, group.run, held) if group.data else group.run
            keep(_quietly(guarded(name, check)))
    return outcomes
