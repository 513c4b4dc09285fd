"""The quickstart: how the time that is left is divided, and trainings that end at their deadline on a busy machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

QUICKSTART = Path(__file__).resolve().parent.parent / "examples" / "quickstart"


def load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def budget() -> ModuleType:
    return load(QUICKSTART / "budget.py")


class TestDivision:
    def test_an_idle_machine_trains_for_the_longest_time(self, budget: ModuleType) -> None:
        assert budget.training_seconds(left=800, start=5) == budget.MAX_TRAINING

    def test_a_busy_machine_trains_for_what_is_left(self, budget: ModuleType) -> None:
        # 400 - 1.25 * 10 * 20 - 40 = 110 for two trainings.
        assert budget.training_seconds(left=400, start=20) == 55

    def test_where_nothing_is_left_the_least_is_done(self, budget: ModuleType) -> None:
        assert budget.training_seconds(left=-100, start=30) == budget.MIN_TRAINING
        assert budget.cases_to_predict(left=-100, start=30, per_case=1, limit=20) == 1

    def test_cases_are_counted_by_what_one_takes(self, budget: ModuleType) -> None:
        # 210 - 1.25 * 8 * 8 = 130 for cases of 1.25 * 10 s.
        assert budget.cases_to_predict(left=210, start=8, per_case=10, limit=20) == 10
        assert budget.cases_to_predict(left=210, start=8, per_case=10, limit=3) == 3
        assert budget.cases_to_predict(left=210, start=8, per_case=1, limit=0) == 104


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Callable[..., SimpleNamespace]:
    """Runs the trainer's loop with a clock that only iterations and validations move."""
    module = load(QUICKSTART / "trainer" / "quickstart_trainer.py")
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)

    def run(*, seconds: int, iteration: Callable[[int], float], validation: float) -> SimpleNamespace:
        trainer = object.__new__(module.nnUNetTrainerQuickstart)
        trainer.allowed_seconds, trainer.num_epochs, trainer.num_val_iterations_per_epoch = seconds, module.EPOCHS, 1
        trainer.iterations = 0
        trainer.iteration_seconds = trainer.last_iteration = trainer.seconds = 0.0
        trainer.dataloader_train = trainer.dataloader_val = iter(lambda: {}, None)
        per_epoch: list[int] = []

        def step(_: dict) -> dict:
            clock.now += iteration(trainer.iterations)
            return {}

        def validate(_: dict) -> dict:
            clock.now += validation
            return {}

        trainer.train_step, trainer.validation_step = step, validate
        trainer.on_train_epoch_end = lambda outputs: per_epoch.append(len(outputs))
        for hook in ("on_train_start", "on_epoch_start", "on_train_epoch_start", "on_validation_epoch_start"):
            setattr(trainer, hook, lambda: None)
        trainer.on_validation_epoch_end = lambda outputs: None
        trainer.on_epoch_end = trainer.on_train_end = lambda: None
        trainer.run_training()
        return SimpleNamespace(trainer=trainer, per_epoch=per_epoch)

    return run


class TestDeadline:
    def test_epochs_share_the_time(self, train: Callable[..., SimpleNamespace]) -> None:
        result = train(seconds=100, iteration=lambda _: 1.0, validation=0.0)
        assert result.per_epoch == [20] * 5
        assert result.trainer.iteration_seconds == 100

    def test_a_machine_that_becomes_ten_times_slower_does_less_and_takes_no_longer(
        self, train: Callable[..., SimpleNamespace]
    ) -> None:
        result = train(seconds=100, iteration=lambda done: 0.5 if done < 60 else 5.0, validation=1.0)
        assert 90 <= result.trainer.seconds <= 100
        assert len(result.per_epoch) == 5
        assert result.trainer.iterations == sum(result.per_epoch) < 75

    def test_iterations_longer_than_an_epoch_end_the_training_early(
        self, train: Callable[..., SimpleNamespace]
    ) -> None:
        result = train(seconds=20, iteration=lambda _: 15.0, validation=3.0)
        assert result.per_epoch == [1]
        assert result.trainer.seconds == 18
