"""A synthetic 2-D data set in nnU-Net's raw format, to try the whole way from images to a table without any data.

Each case is a cross-section of a body as a magnetic resonance scanner might show it: an organ, a thin branching vessel
and lesions of varying size inside the organ are labelled; body tissue, bright lobules outside the organ (as bright as
lesions, so that brightness alone is not enough) and air are background. The anatomy is bent by a smooth random
deformation; the intensities vary from image to image (class means, gamma), are blurred over pixel borders (partial
volume), multiplied by a smooth bias field and end with Rician noise, the magnitude of a complex signal.

Everything here is our own choice; no score on this data says anything about patients. A case depends on the seed and
its own number only, so that a data set of 10 cases starts with the same cases as one of 100.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import cKDTree

from nnunet_nas import __version__
from nnunet_nas.environment import dataset_names, dataset_number
from nnunet_nas.errors import DataProblem, EnvironmentProblem, UsageError

Array = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.uint8]

LABELS = {"background": 0, "organ": 1, "vessel": 2, "lesion": 3}
# Smaller images leave vessels below one pixel; nnU-Net's five folds need five training cases.
MIN_SIZE = 64
MIN_TRAINING_CASES = 5

# Tissues of the drawing: the labels keep their numbers, what nobody labels comes after them.
_ORGAN, _VESSEL, _LESION, _AIR, _BODY, _LOBULE = LABELS["organ"], LABELS["vessel"], LABELS["lesion"], 4, 5, 6
# Mean intensity and its standard deviation over images, per tissue.
_INTENSITIES = {
    _ORGAN: (0.55, 0.04),
    _VESSEL: (0.85, 0.07),
    _LESION: (0.74, 0.05),
    _AIR: (0.02, 0.0),
    _BODY: (0.40, 0.05),
    _LOBULE: (0.74, 0.05),
}
# The anatomy is drawn on a grid this much finer than the pixels; odd, so that pixel centres are grid points.
_FINER = 3
_MIN_LABEL_PIXELS = 8


def phantom_case(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Labels, Labels]:
    """Draws one case.

    Args:
        rng: source of everything random.
        shape: pixels, (y, x), each at least 64.

    Returns:
        The 8-bit image and its label map, both (y, x); every class of `LABELS` is present.
    """
    while True:
        tissue = _tissue(rng, (shape[0] * _FINER, shape[1] * _FINER))
        centres = tissue[_FINER // 2 :: _FINER, _FINER // 2 :: _FINER]
        label = np.where(centres <= max(LABELS.values()), centres, 0).astype(np.uint8)
        if np.bincount(label.ravel(), minlength=len(LABELS)).min() >= _MIN_LABEL_PIXELS:
            return _acquire(rng, tissue), label


def case_rng(seed: int, index: int, *, test: bool = False) -> np.random.Generator:
    """The random source of one case, the same however many cases are drawn."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(test), index)))


def write_dataset(
    folder: Path,
    *,
    number: int,
    num_train: int = 24,
    num_test: int = 8,
    shape: tuple[int, int] = (128, 128),
    seed: int = 0,
) -> Path:
    """Writes `DatasetXXX_Phantom` with training and test cases; an interruption leaves no half of it.

    Args:
        folder: nnU-Net's raw folder.
        number: number of the data set, 1 to 999.
        num_train: training cases, `phantom_000` and so on.
        num_test: unseen cases, `phantom_test_000` and so on, in `imagesTs` and `labelsTs`.
        shape: pixels of each image, (y, x).
        seed: everything random follows from it.

    Returns:
        The folder of the data set.

    Raises:
        UsageError: a value is out of range.
        DataProblem: the number is taken.
        EnvironmentProblem: nothing can be written to `folder`.
    """
    _check_request(number=number, num_train=num_train, num_test=num_test, shape=shape, seed=seed)
    name = f"Dataset{number:03d}_Phantom"
    _require_free(folder, number)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}.") as temporary:
            draft = Path(temporary) / name
            draft.mkdir()
            _write_cases(draft, "Tr", [f"phantom_{index:03d}" for index in range(num_train)], shape, seed)
            _write_cases(draft, "Ts", [f"phantom_test_{index:03d}" for index in range(num_test)], shape, seed)
            description = json.dumps(_dataset_json(num_train, seed), indent=4)
            (draft / "dataset.json").write_text(description, encoding="utf-8")
            # Somebody else may have been quicker; a rename never replaces a folder with content.
            _require_free(folder, number)
            draft.rename(folder / name)
    except OSError as error:
        reason = error.strerror or str(error)
        raise EnvironmentProblem(f"cannot write {folder / name}: {reason}; nothing of it was kept") from error
    return folder / name


def _check_request(*, number: int, num_train: int, num_test: int, shape: tuple[int, int], seed: int) -> None:
    if not 1 <= number <= 999:
        raise UsageError(f"data set number {number} is not in 1 to 999: nnU-Net names data sets by three digits")
    if num_train < MIN_TRAINING_CASES:
        raise UsageError(f"{num_train} training cases are too few: nnU-Net's five folds need {MIN_TRAINING_CASES}")
    if num_test < 0:
        raise UsageError(f"{num_test} test cases: give 0 or more")
    if min(shape) < MIN_SIZE:
        raise UsageError(f"{shape[0]} x {shape[1]} pixels are too few to draw a vessel: give at least {MIN_SIZE}")
    if seed < 0:
        raise UsageError(f"seed {seed} is negative: give 0 or more")


def _require_free(folder: Path, number: int) -> None:
    taken = [name for name in dataset_names(folder) if dataset_number(name) == number]
    if taken:
        raise DataProblem(f"{folder / taken[0]} exists and is left as it is: choose another number or remove it")


def _write_cases(dataset: Path, subset: str, names: list[str], shape: tuple[int, int], seed: int) -> None:
    from skimage import io

    images, labels = dataset / f"images{subset}", dataset / f"labels{subset}"
    images.mkdir()
    labels.mkdir()
    for index, name in enumerate(names):
        image, label = phantom_case(case_rng(seed, index, test=subset == "Ts"), shape)
        io.imsave(images / f"{name}_0000.png", image, check_contrast=False)
        io.imsave(labels / f"{name}.png", label, check_contrast=False)


def _dataset_json(num_train: int, seed: int) -> dict[str, Any]:
    return {
        "channel_names": {"0": "MR"},
        "labels": LABELS,
        "numTraining": num_train,
        "file_ending": ".png",
        "overwrite_image_reader_writer": "NaturalImage2DIO",
        "name": "Phantom (synthetic)",
        "description": "Synthetic images drawn by a program, made to try out software. No patient was imaged.",
        "reference": f"nnunet_nas {__version__}, phantom, seed {seed}",
    }


def _tissue(rng: np.random.Generator, shape: tuple[int, int]) -> Labels:
    """The anatomy as a map of tissues, (y, x). Coordinates: the shorter side runs from -0.5 to 0.5."""
    short = min(shape)
    y, x = ((np.arange(size) + 0.5 - size / 2) / short for size in shape)
    y, x = y[:, None] + 0.03 * _smooth_field(rng, shape, 5), x[None] + 0.03 * _smooth_field(rng, shape, 5)

    tissue = np.full(shape, _AIR, dtype=np.uint8)
    body = _ellipse(y, x, (0.0, 0.0), (rng.uniform(0.38, 0.44), rng.uniform(0.34, 0.42)), rng.uniform(-0.3, 0.3))
    tissue[body] = _BODY
    for _ in range(rng.integers(3, 6)):
        distance, angle = rng.uniform(0.05, 0.33), rng.uniform(0, 2 * np.pi)
        lobule = _blob(rng, y, x, (distance * np.sin(angle), distance * np.cos(angle)), (0.015, 0.045))
        tissue[lobule & body] = _LOBULE

    centre = rng.uniform(-0.10, 0.10, 2)
    axes, turn = rng.uniform(0.13, 0.21, 2), rng.uniform(0, np.pi)
    organ = _ellipse(y, x, tuple(centre), tuple(axes), turn) & body
    tissue[organ] = _ORGAN
    for _ in range(rng.integers(1, 5)):
        v, u = axes * _point_in_disc(rng, 0.75)
        tissue[_blob(rng, y, x, tuple(centre + _rotate(v, u, -turn)), (0.02, 0.06)) & organ] = _LESION
    tissue[_vessel(rng, y, x, centre) & body] = _VESSEL
    return tissue


def _acquire(rng: np.random.Generator, tissue: Labels) -> Labels:
    """What the scanner makes of the anatomy: the 8-bit image, (y, x), at the resolution of the pixels."""
    fine = np.zeros(tissue.shape)
    for kind, (mean, deviation) in _INTENSITIES.items():
        fine[tissue == kind] = max(0.0, rng.normal(mean, deviation))
    fine *= 1 + 0.05 * _smooth_field(rng, tissue.shape, 24)
    fine = ndimage.gaussian_filter(fine, 0.6 * _FINER)
    image = fine.reshape(tissue.shape[0] // _FINER, _FINER, tissue.shape[1] // _FINER, _FINER).mean((1, 3))
    image = np.clip(image, 0, None) ** rng.uniform(0.8, 1.25)
    image *= np.exp(0.15 * _smooth_field(rng, image.shape, 4))
    sigma = rng.uniform(0.03, 0.07)
    image = np.hypot(image + rng.normal(0, sigma, image.shape), rng.normal(0, sigma, image.shape))
    return np.clip(np.round(240 * image / np.percentile(image, 99.5)), 0, 255).astype(np.uint8)


def _smooth_field(rng: np.random.Generator, shape: tuple[int, ...], knots: int) -> Array:
    """A smooth random field of about unit deviation: a cubic spline through `knots` random values per axis."""
    values = rng.normal(size=(knots, knots))
    field: Array = ndimage.zoom(values, [size / knots for size in shape], order=3, mode="nearest")
    return field


def _vessel(rng: np.random.Generator, y: Array, x: Array, organ: Array) -> npt.NDArray[np.bool_]:
    """A tapering tube across the body that passes through the organ, and a thinner branch off its middle."""
    angle = rng.uniform(0, 2 * np.pi)
    start = 0.32 * np.array([np.sin(angle), np.cos(angle)])
    opposite = angle + np.pi + rng.uniform(-0.8, 0.8)
    end = 0.32 * np.array([np.sin(opposite), np.cos(opposite)])
    middle = organ + rng.uniform(-0.12, 0.12, 2)
    radius = rng.uniform(0.011, 0.017)
    trunk = _curve(start, middle, end)
    sideways = angle + rng.choice([-1, 1]) * rng.uniform(1.0, 1.6)
    fork = trunk[len(trunk) // 2]
    tip = fork + 0.22 * np.array([np.sin(sideways), np.cos(sideways)])
    branch = _curve(fork, (fork + tip) / 2 + rng.uniform(-0.05, 0.05, 2), tip)
    return _tube(y, x, trunk, (radius, 0.6 * radius)) | _tube(y, x, branch, (0.7 * radius, 0.45 * radius))


def _curve(start: Array, middle: Array, end: Array) -> Array:
    """Points of the quadratic Bezier curve, (point, 2), about one per pixel of a small image."""
    t = np.linspace(0, 1, 80)[:, None]
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end


def _tube(y: Array, x: Array, points: Array, radii: tuple[float, float]) -> npt.NDArray[np.bool_]:
    """What lies within the radius of a curve; the radius changes linearly from its first to its last point."""
    # Grid points that are near no point of the curve get distance infinity and an index one past the last.
    distance, nearest = cKDTree(points).query(np.stack([y, x], -1), distance_upper_bound=max(radii))
    inside: npt.NDArray[np.bool_] = distance < np.append(np.linspace(*radii, len(points)), 0.0)[nearest]
    return inside


def _blob(
    rng: np.random.Generator, y: Array, x: Array, centre: tuple[float, ...], radii: tuple[float, float]
) -> npt.NDArray[np.bool_]:
    """A slightly flattened disc; small radii are as frequent as large ones on a logarithmic scale."""
    radius = float(np.exp(rng.uniform(*np.log(radii))))
    return _ellipse(y, x, centre, (radius, radius * rng.uniform(0.7, 1.0)), rng.uniform(0, np.pi))


def _ellipse(
    y: Array, x: Array, centre: tuple[float, ...], axes: tuple[float, ...], turn: float
) -> npt.NDArray[np.bool_]:
    v, u = _rotate(y - centre[0], x - centre[1], turn)
    inside: npt.NDArray[np.bool_] = (v / axes[0]) ** 2 + (u / axes[1]) ** 2 < 1
    return inside


def _rotate(y: Any, x: Any, turn: float) -> Array:
    """Coordinates (y, x) along axes that are turned by `turn` radians."""
    return np.stack([np.cos(turn) * y - np.sin(turn) * x, np.sin(turn) * y + np.cos(turn) * x])


def _point_in_disc(rng: np.random.Generator, radius: float) -> Array:
    """A point drawn evenly from a disc around the origin, (y, x)."""
    distance, angle = radius * np.sqrt(rng.uniform()), rng.uniform(0, 2 * np.pi)
    return np.array([distance * np.sin(angle), distance * np.cos(angle)])
