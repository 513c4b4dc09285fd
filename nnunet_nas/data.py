"""Unlabelled patches from nnU-Net's preprocessed data, for scoring networks at initialisation.

Images are read through nnU-Net's own data set classes and never preprocessed again. Labels are not used.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunet_nas.errors import DataProblem

# What blosc2, numpy and pickle raise for files that are missing, truncated or something else.
_READ_ERRORS = (OSError, RuntimeError, ValueError, EOFError, KeyError, zipfile.BadZipFile, pickle.UnpicklingError)


class PatchSource:
    """The centre patch of each training case of a configuration, loaded once and kept while memory allows.

    For a 2-D configuration the patch is cut from the middle slice along the first axis (index `shape // 2`); patches
    larger than the image are padded with zeros on both sides. Source: method description of XTinyU-Net, scoring.

    Attributes:
        cases: identifiers, in the order in which they are scored.
        patch_size: voxels, (y, x) or (z, y, x).
    """

    def __init__(
        self, folder: Path, cases: Sequence[str], patch_size: tuple[int, ...], *, cache_mib: float = 4096
    ) -> None:
        """Opens the data set.

        Args:
            folder: preprocessed data of the configuration (`<data set>/<data_identifier>`).
            cases: identifiers to serve.
            patch_size: voxels, (y, x) or (z, y, x).
            cache_mib: MiB of patches that are kept; patches beyond are read again each time.

        Raises:
            DataProblem: no preprocessed data, or a case that is not there.
        """
        known = set(list_cases(folder))
        missing = [case for case in cases if case not in known]
        if missing:
            raise DataProblem(f"{len(missing)} of the cases are not in {folder}, the first is {missing[0]}")
        self.cases = list(cases)
        self.patch_size = patch_size
        self._folder = folder
        self._dataset = infer_dataset_class(str(folder))(str(folder), list(cases))
        self._room = int(cache_mib * 2**20)
        self._cache: dict[str, torch.Tensor] = {}

    def patch(self, case: str) -> torch.Tensor:
        """One case's patch, float32, (c, *spatial).

        Raises:
            DataProblem: the file is truncated or not what nnU-Net wrote.
        """
        if case in self._cache:
            return self._cache[case]
        patch = self._read(case)
        size = patch.numel() * patch.element_size()
        if size <= self._room:
            self._room -= size
            self._cache[case] = patch
        return patch

    def batch(self, cases: Sequence[str]) -> torch.Tensor:
        """Patches of several cases, float32, (b, c, *spatial)."""
        return torch.stack([self.patch(case) for case in cases])

    def _read(self, case: str) -> torch.Tensor:
        try:
            image = self._dataset.load_case(case)[0]
            array = image[:, image.shape[1] // 2] if len(self.patch_size) == 2 else image[:]
        except _READ_ERRORS as error:
            raise DataProblem(
                f"case {case} in {self._folder} cannot be read ({error}): preprocess the data set again"
            ) from error
        return torch.from_numpy(centre_patch(np.asarray(array), self.patch_size))


def list_cases(folder: Path) -> list[str]:
    """Identifiers of the preprocessed training cases, sorted.

    Raises:
        DataProblem: the folder is missing or holds no preprocessed cases.
    """
    mend = "run nnUNetv2_preprocess for this configuration first"
    if not folder.is_dir():
        raise DataProblem(f"the data are not preprocessed, {folder} does not exist: {mend}")
    try:
        dataset_class = infer_dataset_class(str(folder))
    except (AssertionError, IndexError, KeyError) as error:
        raise DataProblem(f"{folder} does not hold preprocessed cases of one format: {mend}") from error
    cases = sorted(dataset_class.get_identifiers(str(folder)))
    if not cases:
        raise DataProblem(f"{folder} holds no preprocessed cases: {mend}")
    return cases


def centre_patch(image: np.ndarray, patch_size: tuple[int, ...]) -> np.ndarray:
    """Crops the centre or pads with zeros on both sides; with an odd difference the extra voxel goes to the end.

    Args:
        image: (c, *spatial).
        patch_size: voxels, as many as `image` has spatial axes.

    Returns:
        float32, contiguous, (c, *patch_size).
    """
    bounds = []
    for size, patch in zip(image.shape[1:], patch_size, strict=True):
        start = (size - patch) // 2 if size >= patch else -((patch - size) // 2)
        bounds.append([start, start + patch])
    return np.ascontiguousarray(crop_and_pad_nd(image, bounds, 0), dtype=np.float32)
