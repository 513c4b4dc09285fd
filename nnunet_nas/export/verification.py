"""An export beside nnU-Net: logits of real patches, and whole predictions of real cases.

nnU-Net's side is `nnUNetv2_predict`'s own class with the same folds, step and mirroring; our side is the runtime that
the export carries. What must agree, and how closely, is our choice: logits to 1e-4, or to 1e-5 of the largest one,
which is above what the order of float32 sums changes and far below the half precision in which both add them up; labels
in all but 1 in 10,000 voxels, where equal logits may fall either way. (Of a U-Net with logits up to 78 torch's own, in
single precision, were 1.3e-4 away from those in double precision, and the export's as far from torch's.)
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nnunet_nas.export.model import TrainedModel
from nnunet_nas.runtime.images import read_image, reader
from nnunet_nas.runtime.predictor import Case, Predictor
from nnunet_nas.runtime.preprocessing import preprocess
from nnunet_nas.runtime.sliding_window import pad

LOGIT_TOLERANCE = 1e-4
RELATIVE_TOLERANCE = 1e-5
VOXEL_TOLERANCE = 1e-4


@dataclass(frozen=True)
class CaseAgreement:
    """One case predicted by both.

    Attributes:
        case: its identifier.
        voxels: of the image.
        differing: voxels with another label.
        dice: between both, per label that either has.
        logits: largest difference of the logits of its middle patch, over folds.
        largest_logit: of nnU-Net's there, without sign.
    """

    case: str
    voxels: int
    differing: int
    dice: dict[str, float]
    logits: float
    largest_logit: float


@dataclass(frozen=True)
class Verification:
    """What was compared.

    Attributes:
        cases: one entry each.
        step: of the sliding window, in patch sizes.
        mirroring: whether both mirrored.
    """

    cases: tuple[CaseAgreement, ...]
    step: float
    mirroring: bool

    @property
    def logits(self) -> float:
        """Largest difference of logits."""
        return max(case.logits for case in self.cases)

    @property
    def allowed(self) -> float:
        """How far logits may differ."""
        return max(LOGIT_TOLERANCE, RELATIVE_TOLERANCE * max(case.largest_logit for case in self.cases))

    @property
    def differing_share(self) -> float:
        """Voxels with another label, of all."""
        return sum(case.differing for case in self.cases) / sum(case.voxels for case in self.cases)

    @property
    def agrees(self) -> bool:
        """Whether the export is what was trained."""
        return self.logits <= self.allowed and self.differing_share <= VOXEL_TOLERANCE

    def sentence(self) -> str:
        """The outcome in words."""
        dice = [value for case in self.cases for value in case.dice.values()]
        return (
            f"logits differ by at most {self.logits:.1e} (allowed {self.allowed:.1e}); of {len(self.cases)} cases "
            f"{self.differing_share:.2e} of the voxels have another label (allowed {VOXEL_TOLERANCE:.0e}), Dice "
            f"between both at least {min(dice, default=1.0):.4f}"
        )

    def to_json(self) -> dict[str, Any]:
        """For `verification.json`."""
        return {
            "agrees": self.agrees,
            "logits": {"largest_difference": self.logits, "allowed": self.allowed},
            "voxels": {"differing_share": self.differing_share, "allowed": VOXEL_TOLERANCE},
            "step_size": self.step,
            "mirroring": self.mirroring,
            "cases": [asdict(case) for case in self.cases],
        }


def verify(model: TrainedModel, predictor: Predictor, cases: Sequence[Case], *, mirroring: bool) -> Verification:
    """Predicts cases with both and compares.

    Args:
        model: as nnU-Net has it; its predictor's step and mirroring must be those of `predictor`.
        predictor: of the export.
        cases: real images.
        mirroring: whether both mirror, for the record.
    """
    return Verification(tuple(_compare(model, predictor, case) for case in cases), predictor.step, mirroring)


def _compare(model: TrainedModel, predictor: Predictor, case: Case) -> CaseAgreement:
    ours = predictor.predict(case.files)
    theirs = nnunet_labels(model, predictor, case)
    values = {name: value for name, value in predictor.recipe.labels.items() if name not in ("background", "ignore")}
    dice = {
        name: score
        for name, value in values.items()
        if (score := _dice(np.isin(ours, value), np.isin(theirs, value))) is not None
    }
    return CaseAgreement(
        case.name, ours.size, int(np.count_nonzero(ours != theirs)), dice, *_compare_logits(model, predictor, case)
    )


def nnunet_labels(model: TrainedModel, predictor: Predictor, case: Case) -> NDArray[Any]:
    """nnU-Net's label map of a case, (z, y, x), through the file that it writes; postprocessed like ours."""
    from nnunet_nas.runtime.segmentation import keep_components

    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.predictor.predict_from_files_sequential(
                [[str(file) for file in case.files]], [str(Path(folder) / case.name)]
            )
        written = Path(folder) / f"{case.name}{predictor.recipe.file_ending}"
        labels = reader(predictor.recipe.reader).read([written]).array[0].astype(predictor.recipe.label_type)
    return keep_components(labels, predictor.recipe.postprocessing)


def _compare_logits(model: TrainedModel, predictor: Predictor, case: Case) -> tuple[float, float]:
    """Largest difference, and largest logit, of the middle patch."""
    recipe = predictor.recipe
    image = read_image(reader(recipe.reader), case.files, len(recipe.channels))
    data, _ = preprocess(image.array, image.spacing, recipe)
    patch = middle_patch(data, recipe.patch_size)
    difference = largest = 0.0
    for position, own in enumerate(predictor.networks):
        with torch.inference_mode():
            expected = model.load_fold(position)(torch.from_numpy(patch)).numpy()
        difference = max(difference, float(np.abs(own(patch) - expected).max()))
        largest = max(largest, float(np.abs(expected).max()))
    return difference, largest


def middle_patch(data: NDArray[np.float32], patch_size: Sequence[int]) -> NDArray[np.float32]:
    """The patch in the middle of a preprocessed image, (c, z, y, x) to (1, c, *patch_size)."""
    padded, _ = pad(data, patch_size)
    planes = padded.ndim - 1 - len(patch_size)
    index: list[int | slice] = [slice(None), *(size // 2 for size in padded.shape[1 : 1 + planes])]
    for size, wanted in zip(padded.shape[1 + planes :], patch_size, strict=True):
        index.append(slice((size - wanted) // 2, (size - wanted) // 2 + wanted))
    return np.ascontiguousarray(padded[tuple(index)][None])


def _dice(ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> float | None:
    total = int(ours.sum()) + int(theirs.sum())
    return None if total == 0 else 2 * int((ours & theirs).sum()) / total
