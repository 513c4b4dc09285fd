"""Images as nnU-Net's readers give them, and segmentations as they write them.

A reader gives (c, z, y, x), float32, and what it needs to write a segmentation of the same image. Packages are imported
when a model asks for them: SimpleITK, nibabel, imageio (which skimage reads with, too) or tifffile.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_nas.errors import DataProblem, EnvironmentProblem

# Distance that nnU-Net gives the planes of a single 2-D image, in its pixels.
_APART = 999
_COLOUR = (3, 4)


@dataclass(frozen=True)
class Image:
    """An image in memory.

    Attributes:
        array: (c, z, y, x), float32.
        spacing: mm per voxel, (z, y, x).
        frame: what its reader needs to write a segmentation.
        dimensions: of the image itself, 2 or 3.
    """

    array: NDArray[np.float32]
    spacing: tuple[float, ...]
    frame: Any
    dimensions: int = 3


class ItkImages:
    """nnU-Net's `SimpleITKIO`; with an orientation, `SimpleITKIOWithReorient`."""

    def __init__(self, orientation: str | None = None) -> None:
        self.orientation = orientation

    def read(self, files: Sequence[Path]) -> Image:
        """One file per channel, or one with all of them."""
        import SimpleITK as sitk

        arrays, frames = [], []
        for file in files:
            image = sitk.ReadImage(str(file))
            if image.GetDimension() not in (2, 3) or image.GetNumberOfComponentsPerPixel() != 1:
                raise DataProblem(
                    f"{file} has {image.GetDimension()} dimensions and {image.GetNumberOfComponentsPerPixel()} values "
                    f"per voxel: the model reads 2-D or 3-D images of one channel per file"
                )
            original = None
            if self.orientation is not None:
                original = sitk.DICOMOrientImageFilter_GetOrientationFromDirectionCosines(image.GetDirection())
                image = sitk.DICOMOrient(image, self.orientation)
            array = sitk.GetArrayFromImage(image)
            arrays.append(array.reshape((1,) * (4 - array.ndim) + array.shape))
            frames.append((image.GetSpacing(), image.GetOrigin(), image.GetDirection(), original))
        spacing = [abs(step) for step in frames[0][0][::-1]]
        dimensions = len(spacing)
        if dimensions == 2:
            spacing = [max(spacing) * _APART, *spacing]
        stacked = _stacked(files, arrays, [frame[0] for frame in frames], tuple(spacing), frames[0])
        return replace(stacked, dimensions=dimensions)

    def write(self, labels: NDArray[np.unsignedinteger], path: Path, frame: Any) -> None:
        """(z, y, x), compressed."""
        import SimpleITK as sitk

        spacing, origin, direction, original = frame
        image = sitk.GetImageFromArray(_small(labels[0] if len(spacing) == 2 else labels))
        image.SetSpacing(spacing)
        image.SetOrigin(origin)
        image.SetDirection(direction)
        if original is not None:
            image = sitk.DICOMOrient(image, original)
        sitk.WriteImage(image, str(path), True)


class NibabelImages:
    """nnU-Net's `NibabelIO`; `NibabelIOWithReorient` reorients to RAS."""

    def __init__(self, *, reorient: bool = False) -> None:
        self.reorient = reorient

    def read(self, files: Sequence[Path]) -> Image:
        """One 3-D file per channel."""
        import nibabel
        from nibabel.orientations import io_orientation

        arrays, spacings, affines = [], [], []
        for file in files:
            image: Any = nibabel.load(file)
            if image.ndim != 3:
                raise DataProblem(f"{file} has {image.ndim} dimensions, the model reads 3-D images")
            original = image.affine
            if self.reorient:
                image = image.as_reoriented(io_orientation(original))
            arrays.append(image.get_fdata().transpose(2, 1, 0)[None])
            spacings.append(tuple(float(step) for step in image.header.get_zooms()[::-1]))
            affines.append((original, image.affine))
        return _stacked(files, arrays, spacings, spacings[0], affines[0])

    def write(self, labels: NDArray[np.unsignedinteger], path: Path, frame: Any) -> None:
        """(z, y, x)."""
        import nibabel
        from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

        original, affine = frame
        image = nibabel.Nifti1Image(_small(labels).transpose(2, 1, 0), affine)
        if self.reorient:
            image = image.as_reoriented(ornt_transform(axcodes2ornt("RAS"), io_orientation(original)))
        nibabel.save(image, path)


class NaturalImages:
    """nnU-Net's `NaturalImage2DIO`: grey, RGB or RGBA."""

    def read(self, files: Sequence[Path]) -> Image:
        """One file per channel, or one with three or four."""
        arrays = []
        for file in files:
            array = _read_natural(file)
            if array.ndim == 3 and array.shape[-1] in _COLOUR:
                arrays.append(array.transpose(2, 0, 1)[:, None])
            elif array.ndim == 2:
                arrays.append(array[None, None])
            else:
                raise DataProblem(f"{file} has shape {array.shape}: the model reads grey, RGB or RGBA images")
        return replace(_stacked(files, arrays, [()] * len(files), (_APART, 1.0, 1.0), None), dimensions=2)

    def write(self, labels: NDArray[np.unsignedinteger], path: Path, frame: Any) -> None:
        """(1, y, x)."""
        del frame
        if path.suffix.lower() in (".tif", ".tiff"):
            import tifffile

            tifffile.imwrite(path, _small(labels[0]))
            return
        import imageio.v3 as imageio

        imageio.imwrite(path, _small(labels[0]))


class TiffImages:
    """nnU-Net's `Tiff3DIO`: 3-D TIFF, the spacing in a JSON file beside it."""

    def read(self, files: Sequence[Path]) -> Image:
        """One file per channel."""
        import tifffile

        arrays = []
        for file in files:
            array = tifffile.imread(file)
            if array.ndim != 3:
                raise DataProblem(f"{file} has {array.ndim} dimensions, the model reads 3-D images")
            arrays.append(array[None])
        aside = files[0].with_name(f"{files[0].stem[: -len('_0000')]}.json")
        spacing = tuple(json.loads(aside.read_text())["spacing"]) if aside.is_file() else (1.0, 1.0, 1.0)
        return _stacked(files, arrays, [()] * len(files), spacing, spacing)

    def write(self, labels: NDArray[np.unsignedinteger], path: Path, frame: Any) -> None:
        """(z, y, x), and its spacing."""
        import tifffile

        tifffile.imwrite(path, _small(labels), compression="zlib", photometric="minisblack")
        path.with_suffix(".json").write_text(json.dumps({"spacing": list(frame)}))


Reader = ItkImages | NibabelImages | NaturalImages | TiffImages
_READERS: dict[str, Callable[[], Reader]] = {
    "SimpleITKIO": ItkImages,
    "SimpleITKIOWithReorient": lambda: ItkImages("RAS"),
    "NibabelIO": NibabelImages,
    "NibabelIOWithReorient": lambda: NibabelImages(reorient=True),
    "NaturalImage2DIO": NaturalImages,
    "Tiff3DIO": TiffImages,
}
READERS = tuple(_READERS)


def reader(name: str) -> Reader:
    """What reads and writes as nnU-Net's class of this name.

    Raises:
        DataProblem: a class that is not nnU-Net's.
    """
    if name not in _READERS:
        raise DataProblem(f"reader {name} is unknown to this runtime, which knows {', '.join(READERS)}")
    return _READERS[name]()


def read_image(source: Reader, files: Sequence[Path], channels: int, dimensions: int = 2) -> Image:
    """An image that the model can take.

    Args:
        source: of the model.
        files: of one case.
        channels: that the model was trained on.
        dimensions: of the model's patches; a 2-D model takes a 3-D image plane by plane.

    Raises:
        DataProblem: a file that cannot be read, another number of channels or too few dimensions, an empty image, or
            values that are no numbers.
        EnvironmentProblem: the package that reads such files is not installed.
    """
    try:
        image = source.read(files)
    except ImportError as error:
        raise EnvironmentProblem(f"{error.name} is needed to read {files[0].name}: pip install {error.name}") from error
    except DataProblem:
        raise
    except Exception as error:  # whatever a reader of foreign files raises
        raise DataProblem(f"{files[0]} cannot be read ({type(error).__name__}): is it whole?") from error
    if len(image.array) != channels:
        raise DataProblem(f"{files[0]}: the case has {len(image.array)} channels, the model was trained on {channels}")
    if image.dimensions < dimensions:
        raise DataProblem(f"{files[0]} is a {image.dimensions}-D image, the model reads {dimensions}-D images")
    if 0 in image.array.shape:
        raise DataProblem(f"{files[0]} is empty, shape {image.array.shape[1:]}")
    if not np.isfinite(image.array).all():
        raise DataProblem(f"{files[0]} has values that are no finite numbers (NaN or infinity)")
    return image


def _stacked(
    files: Sequence[Path],
    arrays: Sequence[NDArray[Any]],
    spacings: Sequence[tuple[float, ...]],
    spacing: tuple[float, ...],
    frame: Any,
) -> Image:
    """Channels of one case, which must agree in shape and spacing."""
    for file, array, own in zip(files, arrays, spacings, strict=True):
        if array.shape[1:] != arrays[0].shape[1:]:
            raise DataProblem(f"{file} has shape {array.shape[1:]}, {files[0].name} {arrays[0].shape[1:]}: one case?")
        if own != spacings[0]:
            raise DataProblem(f"{file} has spacing {own}, {files[0].name} {spacings[0]}: one case?")
    return Image(np.concatenate(arrays, dtype=np.float32, casting="unsafe"), spacing, frame)


def _small(labels: NDArray[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
    return labels.astype(np.uint8 if labels.max() < 255 else np.uint16, copy=False)


def _read_natural(file: Path) -> NDArray[Any]:
    if file.suffix.lower() in (".tif", ".tiff"):
        import tifffile

        array: NDArray[Any] = tifffile.imread(file)
    else:
        import imageio.v3 as imageio

        array = imageio.imread(file)
    if array.ndim == 3 and array.shape[-1] not in _COLOUR and array.shape[0] in _COLOUR:
        array = np.moveaxis(array, 0, -1)
    return array
