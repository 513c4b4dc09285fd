"""The recipe of an exported model: all that its pipeline needs besides the networks, as JSON that a person can read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nnunet_nas.errors import DataProblem

RECIPE = "recipe.json"
# Raised when an older runtime would read a recipe wrongly; a later recipe is refused.
FORMAT = 1


@dataclass(frozen=True)
class Network:
    """One fold's network.

    Attributes:
        file: ONNX file beside the recipe.
        fold: that it was trained on.
        sha256: of the file.
    """

    file: str
    fold: str
    sha256: str


@dataclass(frozen=True)
class Normalisation:
    """What nnU-Net does to the intensities of one channel.

    Attributes:
        scheme: nnU-Net's class name.
        use_mask: whether statistics are those of the nonzero region, which alone is normalised then.
        intensities: of the training data's foreground: mean, std, percentile_00_5, percentile_99_5.
    """

    scheme: str
    use_mask: bool
    intensities: dict[str, float]


@dataclass(frozen=True)
class Resampling:
    """nnU-Net's `resample_data_or_seg_to_shape`.

    Attributes:
        order: of the spline.
        order_z: of the spline along the coarse axis, where that is resampled on its own.
        separate_z: always, never, or (None) where the spacing is anisotropic.
    """

    order: int
    order_z: int
    separate_z: bool | None


@dataclass(frozen=True)
class Component:
    """A postprocessing step: of these labels together only the largest connected component stays.

    Attributes:
        labels: label values.
        background: what the rest becomes.
    """

    labels: tuple[int, ...]
    background: int


@dataclass(frozen=True)
class Recipe:
    """An exported model.

    Attributes:
        networks: one per fold; their logits are averaged.
        reader: nnU-Net's class that reads and writes the images.
        file_ending: of images and segmentations.
        channels: names of the images' channels, in order.
        transpose: axes of the image as read, in the order in which the network has them, (z, y, x).
        normalisation: per channel.
        spacing: mm per voxel that images are resampled to, (z, y, x) or (y, x) after `transpose`.
        resampling_data: of images.
        resampling_logits: of the network's output.
        patch_size: voxels, (z, y, x) or (y, x).
        mirror_axes: spatial axes along which training mirrored.
        labels: value of each name, or the values of a region.
        region_values: for regions: the label that each head writes, in the order of writing; None for labels.
        heads: output channels of the network.
        postprocessing: in this order.
        model: where it comes from, for people.
        unverified: why nobody has compared it with nnU-Net's own prediction; None if that was done.
    """

    networks: tuple[Network, ...]
    reader: str
    file_ending: str
    channels: tuple[str, ...]
    transpose: tuple[int, ...]
    normalisation: tuple[Normalisation, ...]
    spacing: tuple[float, ...]
    resampling_data: Resampling
    resampling_logits: Resampling
    patch_size: tuple[int, ...]
    mirror_axes: tuple[int, ...]
    labels: dict[str, int | list[int]]
    region_values: tuple[int, ...] | None
    heads: int
    postprocessing: tuple[Component, ...]
    model: dict[str, Any]
    unverified: str | None

    @property
    def label_type(self) -> str:
        """NumPy type of a segmentation, as nnU-Net chooses it."""
        values = {value for entry in self.labels.values() for value in (entry if isinstance(entry, list) else [entry])}
        return "uint8" if len(values - {0}) < 255 else "uint16"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        content: dict[str, Any] = json.loads(
            json.dumps({f.name: getattr(self, f.name) for f in fields(self)}, default=vars)
        )
        return {"format": FORMAT, **content}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Recipe:
        """The recipe that `to_json` gave.

        Raises:
            KeyError, TypeError: it is none.
        """

        def numbers(key: str) -> tuple[Any, ...]:
            return tuple(content[key])

        return cls(
            networks=tuple(Network(**item) for item in content["networks"]),
            reader=content["reader"],
            file_ending=content["file_ending"],
            channels=numbers("channels"),
            transpose=numbers("transpose"),
            normalisation=tuple(Normalisation(**item) for item in content["normalisation"]),
            spacing=numbers("spacing"),
            resampling_data=Resampling(**content["resampling_data"]),
            resampling_logits=Resampling(**content["resampling_logits"]),
            patch_size=numbers("patch_size"),
            mirror_axes=numbers("mirror_axes"),
            labels=dict(content["labels"]),
            region_values=None if content["region_values"] is None else numbers("region_values"),
            heads=int(content["heads"]),
            postprocessing=tuple(
                Component(tuple(item["labels"]), int(item["background"])) for item in content["postprocessing"]
            ),
            model=dict(content["model"]),
            unverified=content["unverified"],
        )


def read_recipe(folder: Path) -> Recipe:
    """The recipe of an exported folder, after a check that its networks are those that were exported.

    Raises:
        DataProblem: no export, one of a later version, or a network that is missing or was changed.
    """
    path = folder / RECIPE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataProblem(
            f"{folder} is not an exported model ({RECIPE}: {type(error).__name__}): export it again"
        ) from error
    if version != FORMAT:
        raise DataProblem(f"{path} has format {version}, this runtime reads {FORMAT}: use the predict.pyz beside it")
    try:
        recipe = Recipe.from_json(content)
    except (KeyError, TypeError, ValueError) as error:
        raise DataProblem(f"{path} is damaged ({type(error).__name__}: {error}): export the model again") from error
    for network in recipe.networks:
        if not isinstance(network.file, str) or Path(network.file).name != network.file:
            raise DataProblem(f"{path} names a network outside its folder ({network.file}): export the model again")
        _require_unchanged(folder / network.file, network.sha256)
    return recipe


def _require_unchanged(path: Path, sha256: str) -> None:
    if not path.is_file():
        raise DataProblem(f"{path} is missing: copy the exported folder again, whole")
    if file_digest(path) != sha256:
        raise DataProblem(f"{path} is not the network that was exported (its digest differs): export the model again")


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
