"""Scores every candidate width under every seed, from what is stored already to the last image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch

from nnunet_nas.architecture import NetworkSpec, build_network
from nnunet_nas.data import PatchSource
from nnunet_nas.errors import DataProblem
from nnunet_nas.xtiny.proxies import Proxy, Scene
from nnunet_nas.xtiny.sensitivity import default_batch_size, prepare, uses_batch_statistics
from nnunet_nas.xtiny.store import ScoreStore
from nnunet_nas.xtiny.widths import capped_features, caps_of


@dataclass(frozen=True)
class Candidate:
    """A base network under a cap."""

    cap: int
    spec: NetworkSpec

    @property
    def features(self) -> list[int]:
        """Channels per stage."""
        return list(self.spec.architecture["arch_kwargs"]["features_per_stage"])


def candidates_of(base: NetworkSpec, configuration: str) -> list[Candidate]:
    """All widths of a base network, widest (the base itself) first.

    Raises:
        DataProblem: its network has no channel widths to cap.
    """
    features = base.architecture["arch_kwargs"].get("features_per_stage")
    if not isinstance(features, list | tuple) or not features or not all(isinstance(width, int) for width in features):
        raise DataProblem(
            f"the network of {configuration} ({base.architecture['network_class_name']}) has no features_per_stage "
            f"list to narrow: choose another configuration with -c"
        )
    return [Candidate(cap, base.with_features(capped_features(features, cap))) for cap in caps_of(features)]


@dataclass(frozen=True)
class Scorer:
    """What stays the same over all candidates and seeds.

    Attributes:
        proxy: what is measured.
        source: the images.
        store: known scores; new ones are added as they come.
        device: where to compute.
        batch_size: patches at once; None chooses by memory. 1 is the reference: one image after the other, all threads
            on it.
    """

    proxy: Proxy
    source: PatchSource
    store: ScoreStore
    device: torch.device
    batch_size: int | None = None

    def steps(self, networks: int) -> int:
        """Number of steps that `progress` will be told in total for a number of networks."""
        return networks * self._steps_of_one()

    def curves(
        self,
        candidates: Sequence[Candidate],
        seeds: Sequence[int],
        progress: Callable[[int], object] = lambda steps: None,
        *,
        draws: Sequence[int] | None = None,
    ) -> np.ndarray:
        """One curve per seed, float64, (seeds, candidates), widest candidate first.

        Args:
            candidates: to score.
            seeds: of the weights.
            draws: how many of the seeds each candidate is scored with, for a proxy with values per image; elsewhere the
                curves are NaN. None: all.
            progress: called with the number of steps done; a step is one image, or one network for proxies without
                values per image.

        Raises:
            DataProblem: a score is not finite.
        """
        curves = np.full((len(seeds), len(candidates)), np.nan)
        with _full_float32():
            for row, seed in enumerate(seeds):
                there = [place for place in range(len(candidates)) if draws is None or row < draws[place]]
                values = [self._values(candidates[place], seed, progress) for place in there]
                curves[row, there] = self.proxy.curve(values)
        return curves

    def _steps_of_one(self) -> int:
        return len(self.source.cases) if self.proxy.per_image else 1

    def _values(self, candidate: Candidate, seed: int, progress: Callable[[int], object]) -> dict[str, float]:
        """A candidate's values under one seed; only what is not stored is computed."""
        known = self.store.known(seed, candidate.cap)
        done = sum(case in known for case in self.source.cases) if self.proxy.per_image else int(bool(known))
        progress(done)
        if done < self._steps_of_one():
            self._measure(candidate, seed, known, progress)
        return _ordered(self.store.known(seed, candidate.cap), self.source.cases, self.proxy)

    def _measure(
        self, candidate: Candidate, seed: int, known: dict[str, float], progress: Callable[[int], object]
    ) -> None:
        started = perf_counter()
        network = prepare(build_network(candidate.spec, seed=seed), self.device)
        size = self.batch_size or default_batch_size(
            candidate.features[0], math.prod(candidate.spec.patch_size), self.device
        )
        if uses_batch_statistics(network):
            size = 1
        scene = Scene(
            load=self.source.batch,
            cases=self.source.cases,
            patch_size=candidate.spec.patch_size,
            device=self.device,
            batch_size=size,
            seed=seed,
            side_by_side=self.batch_size != 1,
            known=known,
        )
        for values in self.proxy.measure(network, scene):
            _require_finite(values, candidate.cap, seed)
            now = perf_counter()
            self.store.add(seed, candidate.cap, values, now - started)
            started = now
            progress(sum(case not in known for case in values) if self.proxy.per_image else 1)


def _ordered(values: dict[str, float], cases: Sequence[str], proxy: Proxy) -> dict[str, float]:
    """In the order of the cases: sums are then the same whichever batch came first."""
    return {case: values[case] for case in cases} if proxy.per_image else values


def _require_finite(values: dict[str, float], cap: int, seed: int) -> None:
    for item, value in values.items():
        if not math.isfinite(value):
            raise DataProblem(
                f"the score of cap {cap} (seed {seed}, {item}) is {value}: look for NaN or infinite voxels in the "
                f"preprocessed images, leave them out with -cases, or try another seed or -metric"
            )


@contextmanager
def _full_float32() -> Iterator[None]:
    """No TF32 in convolutions: its ten bits of mantissa would show in the scores."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
