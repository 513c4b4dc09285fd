"""What a selection was asked for, and whether its answer lies on the disk already.

Neither torch nor nnU-Net is imported: a finished selection answers at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_nas.cases import draw_cases, files_digest, image_files
from nnunet_nas.commands import DEFAULT_PLANS
from nnunet_nas.errors import DataProblem, NasError
from nnunet_nas.files import read_json
from nnunet_nas.plans import Plans, package_versions

DEFAULT_IMAGES = 64
# Where the number of draws follows from what they vary by (`allocation`), so many images, the same for all widths.
FEW_IMAGES = 2
DEFAULT_SEED = 369
SELECTION, SCORES = "selection.json", "scores.csv"
RACE = "race"
# The fold whose training cases a race trains on, and on whose validation cases it is decided.
RACE_FOLD = 0


@dataclass(frozen=True)
class TinySettings:
    """What is to be selected, and how.

    Attributes:
        configuration: the base, for example `2d`.
        plans: plans identifier.
        images: how many training images to draw, `all` for all; None: few where that is enough, up to 64 elsewhere.
        cases: exactly these training cases instead.
        seeds: of the weights, for all widths; none: one, or what each width is worth where images are not named either.
        image_seed: draws the images, so that more seeds of the weights are scored on the same ones.
        metric: a key of `PROXIES`.
        rule: `paper`, `spread` or `race`, which is the command's default.
        budgets: upper limits by name of a cost (`parameters`, `macs`, `inference_mib`).
        batch_size: images scored at once; None chooses by memory.
        output: identifier of a separate plans file.
        overwrite: replace configurations of the same names.
        dry_run: write nothing.
        margin: Dice that a wider width may be better by, in a race.
        horizon: iterations that the user will train, likewise.
        race_budget: what a race may cost, in iterations of the base.
    """

    configuration: str = "2d"
    plans: str = DEFAULT_PLANS
    images: int | str | None = None
    cases: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    image_seed: int = DEFAULT_SEED
    metric: str = "jacobian"
    rule: str = "paper"
    budgets: dict[str, float] = field(default_factory=dict)
    batch_size: int | None = None
    output: str | None = None
    overwrite: bool = False
    dry_run: bool = False
    margin: float = 0.01
    horizon: int = 250_000
    race_budget: int = 5000

    @property
    def few_images(self) -> bool:
        """Whether few images are as good as many: for a mean over images, where nobody asks for others."""
        return self.rule != RACE and self.metric == "jacobian" and self.images is None and not self.cases

    @property
    def common_seeds(self) -> tuple[int, ...]:
        """Those that every width is scored with; none where each gets as many as it is worth."""
        return self.seeds or (() if self.few_images else (DEFAULT_SEED,))

    @property
    def measure(self) -> str:
        """What widths are scored by: the metric, or what a race measures."""
        return "dice" if self.rule == RACE else self.metric

    @property
    def reports(self) -> tuple[str, str, str]:
        """Files that a selection leaves."""
        return SELECTION, SCORES, "race.png" if self.rule == RACE else "sensitivity.png"

    def cases_among(self, known: Sequence[str]) -> list[str]:
        """The cases to score.

        Args:
            known: all preprocessed cases, sorted.

        Raises:
            DataProblem: fewer cases than asked for.
        """
        if self.cases:
            return list(self.cases)
        default = FEW_IMAGES if self.few_images else DEFAULT_IMAGES
        number = min(default, len(known)) if self.images is None else self.images
        return draw_cases(known, None if isinstance(number, str) else number, self.image_seed)


def results_folder(dataset: Path, settings: TinySettings) -> Path:
    """Where reports and scores lie, beside the plans."""
    suffix = f"__{RACE}" if settings.rule == RACE else "" if settings.metric == "jacobian" else f"__{settings.metric}"
    return dataset / "nas_xtiny" / f"{settings.output or settings.plans}__{settings.configuration}{suffix}"


def score_key(plans: Plans, settings: TinySettings, cases: Sequence[str], device: str) -> dict[str, Any]:
    """Everything that a score depends on besides seed and width."""
    dataset, identifier = plans.path.parent, plans.resolve(settings.configuration)["data_identifier"]
    key = {
        "dataset": dataset.name,
        "plans": settings.plans,
        "configuration": settings.configuration,
        "base_digest": plans.digest(settings.configuration),
        "data_identifier": identifier,
        "data_fingerprint": _fingerprint(dataset, scored_files(dataset / identifier, settings, cases)),
        "cases": list(cases),
        "metric": settings.measure,
        "device": device,
        "batch_size": settings.batch_size,
        "versions": package_versions(),
    }
    return {**key, "horizon": settings.horizon, "fold": RACE_FOLD} if settings.rule == RACE else key


def scored_files(folder: Path, settings: TinySettings, cases: Sequence[str]) -> list[Path]:
    """The files that scores depend on: the images, or for a race everything that nnU-Net's preprocessing wrote.

    What nnU-Net unpacks later (`.npy`) is no other data.
    """
    if settings.rule == RACE:
        splits = folder.parent / "splits_final.json"
        return [*sorted(path for path in folder.iterdir() if path.suffix != ".npy"), splits]
    files = image_files(folder)
    return [files[case] for case in cases if case in files]


def race_cases(dataset: Path) -> list[str]:
    """The cases that a race is decided on: nnU-Net's split must be there.

    Raises:
        DataProblem: it is not, or has no such fold.
    """
    mend = "restore it, or remove it so that nnU-Net makes a new one"
    splits = read_json(dataset / "splits_final.json", mend)
    try:
        return sorted(splits[RACE_FOLD]["val"])
    except (IndexError, KeyError, TypeError) as error:
        raise DataProblem(f"{dataset / 'splits_final.json'} has no fold {RACE_FOLD}: {mend}") from error


def inputs_of(key: dict[str, Any], settings: TinySettings) -> dict[str, Any]:
    """Everything that a report depends on, plain JSON."""
    return {
        **key,
        "seeds": list(settings.common_seeds),
        **({} if settings.rule == RACE else {"image_seed": settings.image_seed}),
        "rule": settings.rule,
        "budgets": settings.budgets,
        **({"margin": settings.margin, "race_budget": settings.race_budget} if settings.rule == RACE else {}),
    }


def finished_report(dataset: Path, settings: TinySettings, device: str) -> dict[str, Any] | None:
    """The report of the same selection if nothing is left to do: no score, no file, no configuration.

    Args:
        dataset: preprocessed folder of the data set.
        settings: what is asked for.
        device: type of the device to score on.

    Returns:
        the content of selection.json; None if there is anything to do, or to complain about.
    """
    folder = results_folder(dataset, settings)
    # Whatever is wrong with plans, data or report is said by the scoring itself.
    with contextlib.suppress(NasError, OSError, ValueError, KeyError, TypeError, AttributeError):
        report: dict[str, Any] = json.loads((folder / SELECTION).read_text(encoding="utf-8"))
        plans = Plans.of(dataset, settings.plans)
        plans.require_fresh(settings.configuration)
        identifier = plans.resolve(settings.configuration)["data_identifier"]
        race = settings.rule == RACE
        cases = race_cases(dataset) if race else settings.cases_among(list(image_files(dataset / identifier)))
        asked = inputs_of(score_key(plans, settings, cases, device), settings)
        there = all((folder / name).is_file() for name in settings.reports)
        # Reports of earlier versions do not say what they took.
        whole = there and "seconds" in report and report["inputs"] == asked
        if whole and (settings.dry_run or _all_added(plans, settings, report)):
            return report
    return None


def keep_earlier(folder: Path, reports: Sequence[str], inputs: dict[str, Any]) -> Path | None:
    """Moves the reports of a run with other inputs aside, before those of this one are written.

    Args:
        folder: of the reports.
        reports: names of their files, the selection first.
        inputs: of this run.

    Returns:
        where they are now; None if there are none of another run.
    """
    try:
        content = (folder / reports[0]).read_bytes()
    except FileNotFoundError:
        return None
    with contextlib.suppress(ValueError, KeyError, TypeError):
        earlier = json.loads(content)["inputs"]
        if earlier == inputs:
            return None
        content = json.dumps(earlier, sort_keys=True).encode()
    kept = folder / f"earlier_{hashlib.sha256(content).hexdigest()[:8]}"
    kept.mkdir(exist_ok=True)
    for name in reversed(reports):  # the selection last: a kill in between leaves it to be moved again
        with contextlib.suppress(FileNotFoundError):
            (folder / name).replace(kept / name)
    return kept


def _fingerprint(dataset: Path, files: Sequence[Path]) -> str:
    """A digest of nnU-Net's own description of the data and of files as such."""
    digest = hashlib.sha256()
    for name in ("dataset.json", "dataset_fingerprint.json"):
        path = dataset / name
        digest.update(path.read_bytes() if path.exists() else b"")
    digest.update(files_digest(files).encode())
    return digest.hexdigest()[:16]


def _all_added(plans: Plans, settings: TinySettings, report: dict[str, Any]) -> bool:
    """Whether the plans hold every candidate as the base gives it today."""
    target = plans if settings.output is None else Plans.read(plans.beside(settings.output))
    base = settings.configuration
    architecture = plans.resolve(base)["architecture"]
    for candidate in report["candidates"][1:]:  # the widest is the base itself
        entry = target.configurations[candidate["configuration"]]
        arguments = {**architecture["arch_kwargs"], "features_per_stage": candidate["features_per_stage"]}
        expected = {**architecture, "arch_kwargs": arguments}
        same = all(entry["architecture"][key] == value for key, value in expected.items())
        if not same or entry["inherits_from"] != base or target.staleness(candidate["configuration"]) is not None:
            return False
    return target.digest(base) == plans.digest(base)
