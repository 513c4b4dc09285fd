"""Distances between the surfaces of two masks: HD95 and normalised surface Dice, in millimetres.

The surface of a mask are its voxels with a face neighbour outside of it or outside of the image, and the distance of a
surface voxel is that of its centre to the nearest centre of the other surface. Of the variants in use (Maier-Hein et
al., Nature Methods 2024, and its supplement) these are:

- HD95: the larger one of the two directed 95th percentiles, as MONAI computes it.
- NSD (Nikolov et al., arXiv:1809.04430): the share of both surfaces that lies within the tolerance of the other one,
  counting voxels and not weighting them by area, as MONAI does.

Empty masks: where both are empty, both metrics are undefined (NaN), as nnU-Net's Dice is. Where one is empty, NSD is 0
and HD95 the diagonal of the image: leaving such cases out would reward a model for finding nothing.

Axes of length 1 are dropped: nnU-Net stores a 2-D image as a slice, whose voxels would all be surface in 3-D.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnunet_nas.errors import DataProblem
from nnunet_nas.evaluation.summaries import Model

Mask = NDArray[np.bool_]

HD95 = "HD95"
NSD = "NSD"
# A distance is a root of a sum of squares: what should equal the tolerance may miss it in the last digits.
_ROUNDING = 1e-9


def surface_metrics(
    reference: Mask, prediction: Mask, spacing: Sequence[float], *, tolerance: float
) -> dict[str, float]:
    """HD95 in mm and NSD of a predicted mask.

    Args:
        reference: the label, (z, y, x) or (y, x), bool.
        prediction: of the same shape.
        spacing: mm per voxel, in the order of the axes.
        tolerance: of NSD, mm.

    Returns:
        `{"HD95": mm, "NSD": 0 to 1}`, both NaN if both masks are empty.
    """
    if not reference.any() and not prediction.any():
        return {HD95: math.nan, NSD: math.nan}
    if not reference.any() or not prediction.any():
        diagonal = math.sqrt(sum((size * step) ** 2 for size, step in zip(reference.shape, spacing, strict=True)))
        return {HD95: diagonal, NSD: 0.0}
    one, other = surface_distances(reference, prediction, spacing)
    within = [np.count_nonzero(distances <= tolerance * (1 + _ROUNDING)) for distances in (one, other)]
    return {
        HD95: float(max(np.percentile(one, 95), np.percentile(other, 95))),
        NSD: sum(within) / (len(one) + len(other)),
    }


def surface_distances(
    reference: Mask, prediction: Mask, spacing: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distances of the reference's surface voxels to the prediction's surface, and the other way round.

    Args:
        reference: not empty, (z, y, x) or (y, x), bool.
        prediction: not empty, of the same shape.
        spacing: mm per voxel, in the order of the axes.

    Returns:
        mm, one per surface voxel of the reference, and one per surface voxel of the prediction.
    """
    flat = tuple(axis for axis, size in enumerate(reference.shape) if size == 1)
    steps = [step for step, size in zip(spacing, reference.shape, strict=True) if size > 1] or [1.0]
    one, other = (np.atleast_1d(np.squeeze(mask, flat)) for mask in (reference, prediction))
    # What is outside the box around both masks is background of both: erosion and distances are the same without it.
    box = ndimage.find_objects((one | other).astype(np.uint8))[0]
    one, other = _surface(one[box]), _surface(other[box])
    to_one, to_other = (ndimage.distance_transform_edt(~surface, sampling=steps) for surface in (one, other))
    return to_other[one], to_one[other]


@dataclass(frozen=True)
class SurfaceTask:
    """One case to measure; plain data, so that it can be sent to another process.

    Attributes:
        reference: file of the label.
        prediction: file of the prediction.
        tolerances: of NSD by class, mm; classes are keys of summary.json, `1` or `(1, 2)`.
        dataset_json: names the reader and the ignore label.
    """

    reference: Path
    prediction: Path
    tolerances: Mapping[str, float]
    dataset_json: dict[str, Any]


def surface_tasks(
    model: Model, cases: Sequence[str], *, labels: Path | None, tolerances: Mapping[str, float]
) -> list[SurfaceTask]:
    """What to measure of a model, case by case.

    Args:
        model: whose predictions and labels are read again.
        cases: names.
        labels: where the labels are now; None where the evaluation recorded them.
        tolerances: of NSD by key of the class, mm.
    """
    tasks = []
    for name in cases:
        case = model.cases[name]
        reference = case.reference if labels is None else labels / case.prediction.name
        content = {"file_ending": case.prediction.name.removeprefix(name), **model.dataset_json}
        chosen = {key: tolerances[key] for key in case.metrics}
        tasks.append(SurfaceTask(reference, case.prediction, chosen, content))
    return tasks


def measure_all(tasks: Sequence[SurfaceTask], *, processes: int) -> Iterator[dict[str, dict[str, float]]]:
    """`measure` of each task, in order.

    Raises:
        DataProblem: of the first task that has one.
    """
    if processes == 1 or len(tasks) < 2:
        yield from map(measure, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(tasks)), mp_context=context) as pool:
        yield from pool.map(measure, tasks)


def measure(task: SurfaceTask) -> dict[str, dict[str, float]]:
    """Surface metrics of one case by class, read by nnU-Net's reader; ignored voxels count as background.

    Formats without spacing (PNG) have pixels instead of millimetres.

    Raises:
        DataProblem: a file is missing, cannot be read, or the two do not match.
    """
    from nnunetv2.evaluation.evaluate_predictions import key_to_label_or_region, region_or_label_to_mask
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    for file in (task.reference, task.prediction):
        if not file.exists():
            raise DataProblem(
                f"{file} does not exist, surface metrics need it: restore it, or name the labels with -ref"
            )
    try:
        reader = determine_reader_writer_from_dataset_json(task.dataset_json, str(task.reference), verbose=False)()
        reference, properties = reader.read_seg(str(task.reference))
        prediction, _ = reader.read_seg(str(task.prediction))
    except (RuntimeError, OSError, ValueError, AssertionError) as error:
        raise DataProblem(
            f"cannot read {task.reference} and {task.prediction}: {' '.join(str(error).split())}"
        ) from error
    if reference.shape != prediction.shape:
        raise DataProblem(
            f"{task.prediction} has {prediction.shape[1:]} voxels, its label {reference.shape[1:]}: predict again"
        )
    ignored = task.dataset_json.get("labels", {}).get("ignore")
    counts = reference[0] != ignored if ignored is not None else True
    found = {}
    for key, tolerance in task.tolerances.items():
        label = key_to_label_or_region(key)
        one, other = (region_or_label_to_mask(volume[0], label) & counts for volume in (reference, prediction))
        found[key] = surface_metrics(one, other, properties["spacing"], tolerance=tolerance)
    return found


def _surface(mask: Mask) -> Mask:
    return mask & ~ndimage.binary_erosion(mask, ndimage.generate_binary_structure(mask.ndim, 1))
