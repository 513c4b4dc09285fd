"""`Predictor`: an exported model, from image files to label maps; see the package."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunet_nas.errors import DataProblem, EnvironmentProblem, UsageError
from nnunet_nas.runtime.images import read_image, reader
from nnunet_nas.runtime.preprocessing import preprocess
from nnunet_nas.runtime.recipe import read_recipe
from nnunet_nas.runtime.segmentation import segment
from nnunet_nas.runtime.sliding_window import predict_logits

DEFAULT_STEP = 0.5


@dataclass(frozen=True)
class Case:
    """One case of a folder.

    Attributes:
        name: its identifier.
        files: one per channel.
    """

    name: str
    files: tuple[Path, ...]


class Predictor:
    """Predicts with an exported model.

    Attributes:
        recipe: of the model.
        step: of the sliding window, in patch sizes.
        networks: one per fold, patches (b, c, *spatial) to logits.
    """

    def __init__(
        self, folder: Path, *, step: float = DEFAULT_STEP, mirroring: bool = True, threads: int | None = None
    ) -> None:
        """Opens an exported folder.

        Args:
            folder: that `nnunet_nas export` wrote.
            step: of the sliding window, in patch sizes, above 0 and at most 1.
            mirroring: whether to average over mirrored patches, where training mirrored.
            threads: of ONNX Runtime; None for all cores.

        Raises:
            UsageError: a step that is none.
            DataProblem: the folder is no export, or was changed.
            EnvironmentProblem: ONNX Runtime is not installed.
        """
        if not 0 < step <= 1:
            raise UsageError(f"step size {step}: above 0 and at most 1")
        self.recipe = read_recipe(folder)
        self.step = step
        self._mirror_axes = self.recipe.mirror_axes if mirroring else ()
        self._reader = reader(self.recipe.reader)
        self.networks = [_Session(folder / network.file, threads) for network in self.recipe.networks]

    def cases(self, folder: Path) -> list[Case]:
        """Cases of a folder of images, named as nnU-Net names them: `CASE_0000.nii.gz`, one file per channel.

        Raises:
            DataProblem: no such folder, or no images of the model's kind in it.
        """
        ending = self.recipe.file_ending
        if not folder.is_dir():
            raise DataProblem(f"{folder} is not a folder of images")
        found: dict[str, list[Path]] = {}
        for path in sorted(folder.iterdir()):
            match = re.fullmatch(rf"(.+)_\d{{4}}{re.escape(ending)}", path.name)
            if match:
                found.setdefault(match[1], []).append(path)
        if not found:
            raise DataProblem(f"{folder} holds no images named CASE_0000{ending}, as the model was trained on")
        return [Case(name, tuple(files)) for name, files in found.items()]

    def predict(self, files: Sequence[Path], output: Path | None = None) -> NDArray[np.unsignedinteger]:
        """The label map of one case, (z, y, x); written to `output` if given.

        Raises:
            DataProblem: images that the model cannot take.
            EnvironmentProblem: `output` cannot be written.
        """
        image = read_image(self._reader, files, len(self.recipe.channels), len(self.recipe.patch_size))
        labels = self.predict_array(image.array, image.spacing)
        if output is not None:
            try:
                output.parent.mkdir(parents=True, exist_ok=True)
                self._reader.write(labels, output, image.frame)
            except (OSError, RuntimeError) as error:
                raise EnvironmentProblem(f"{output} cannot be written: {' '.join(str(error).split())}") from error
        return labels

    def predict_array(self, image: NDArray[np.float32], spacing: Sequence[float]) -> NDArray[np.unsignedinteger]:
        """The label map, (z, y, x), of an image (c, z, y, x) of `spacing` mm per voxel, (z, y, x)."""
        data, geometry = preprocess(image, spacing, self.recipe)
        return segment(self.logits(data), geometry, self.recipe)

    def logits(self, data: NDArray[np.float32]) -> NDArray[np.float16]:
        """Logits of a preprocessed image, (heads, z, y, x): the mean over folds."""
        total: NDArray[np.float16] | None = None
        for network in self.networks:
            own = predict_logits(
                network,
                data,
                heads=self.recipe.heads,
                patch_size=self.recipe.patch_size,
                mirror_axes=self._mirror_axes,
                step=self.step,
            )
            total = own if total is None else total + own
        assert total is not None
        return total / np.float16(len(self.networks)) if len(self.networks) > 1 else total


class _Session:
    """One ONNX network."""

    def __init__(self, path: Path, threads: int | None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise EnvironmentProblem("onnxruntime is not installed: pip install onnxruntime") from error
        options = onnxruntime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def __call__(self, patch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of patches, (b, c, *spatial)."""
        logits: NDArray[np.float32] = self._session.run(None, {self._input: patch})[0]
        return logits
