"""The exported folder: networks, recipe, runtime, instructions and what the verification found."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import zipapp
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nnunet_nas
from nnunet_nas import errors, runtime
from nnunet_nas.errors import DataProblem, EnvironmentProblem
from nnunet_nas.export.model import TrainedModel, load_model, recipe_of
from nnunet_nas.export.network import write_network
from nnunet_nas.export.verification import Verification, verify
from nnunet_nas.files import replace_file
from nnunet_nas.runtime.predictor import DEFAULT_STEP, Case, Predictor
from nnunet_nas.runtime.recipe import RECIPE, Network, Recipe, file_digest

VERIFICATION = "verification.json"
_PACKAGES = {
    "SimpleITKIO": "SimpleITK",
    "SimpleITKIOWithReorient": "SimpleITK",
    "NibabelIO": "nibabel",
    "NibabelIOWithReorient": "nibabel",
    "NaturalImage2DIO": "imageio",
    "Tiff3DIO": "tifffile",
}


@dataclass(frozen=True)
class ExportSettings:
    """What is exported, and how it is verified.

    Attributes:
        model: nnU-Net's `TRAINER__PLANS__CONFIGURATION` folder.
        folds: empty for all that are trained.
        checkpoint: file name.
        output: folder to write.
        postprocessing: `postprocessing.pkl`, or None.
        images: folder of images to verify with; None for no verification.
        cases: how many of them.
        step: of the sliding window in the verification.
        mirroring: whether the verification mirrors.
        unverified: write the export even if it does not agree or cannot be verified.
    """

    model: Path
    folds: tuple[str, ...]
    checkpoint: str
    output: Path
    postprocessing: Path | None = None
    images: Path | None = None
    cases: int = 2
    step: float = DEFAULT_STEP
    mirroring: bool = True
    unverified: bool = False


def export(settings: ExportSettings, progress: Callable[[str], object] = lambda text: None) -> Verification | None:
    """Writes the folder, complete and verified, or nothing.

    Args:
        settings: what to do.
        progress: called with a line about each step.

    Returns:
        what was compared; None without verification.

    Raises:
        DataProblem: the model cannot be exported, cannot be verified, or does not agree with nnU-Net.
        EnvironmentProblem: packages are missing, or the folder cannot be written.
    """
    _require_free(settings.output)
    model = load_model(
        settings.model, settings.folds, settings.checkpoint, step=settings.step, mirroring=settings.mirroring
    )
    recipe = recipe_of(model, (), settings.postprocessing)  # refusals come before the work
    with _scratch_beside(settings.output) as scratch:
        folder = Path(scratch) / "export"
        folder.mkdir()
        recipe = _write_model(model, recipe, folder, progress)
        verification = _verified(model, settings, folder, progress)
        _write_rest(recipe if verification is None else _with_outcome(recipe, verification), verification, folder)
        if settings.output.exists():
            settings.output.rmdir()
        folder.rename(settings.output)
    return verification


def _scratch_beside(output: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder on the same disk, from which the finished export is renamed."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent)
    except OSError as error:
        raise EnvironmentProblem(f"-o {output} cannot be written ({error.strerror}): choose another folder") from error


def _require_free(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataProblem(f"-o {output} exists and is not an empty folder: choose another, or remove it")


def _write_model(model: TrainedModel, recipe: Recipe, folder: Path, progress: Callable[[str], object]) -> Recipe:
    """Writes all networks; the recipe that names them."""
    networks = []
    for position, fold in enumerate(model.folds):
        path = folder / f"fold_{fold}.onnx"
        write_network(model.load_fold(position), path, channels=len(recipe.channels), patch_size=recipe.patch_size)
        networks.append(Network(path.name, fold, file_digest(path)))
        progress(f"{path.name}: {path.stat().st_size / 2**20:.2f} MiB")
    recipe = replace(recipe, networks=tuple(networks))
    _write_recipe(recipe, folder)
    return recipe


def _verified(
    model: TrainedModel, settings: ExportSettings, folder: Path, progress: Callable[[str], object]
) -> Verification | None:
    if settings.images is None:
        if settings.unverified:
            return None
        raise DataProblem("no images to verify the export with: name a folder with -i, or write it with --unverified")
    predictor = Predictor(folder, step=settings.step, mirroring=settings.mirroring)
    cases: Sequence[Case] = predictor.cases(settings.images)[: settings.cases]
    progress(f"comparing {len(cases)} cases of {settings.images} with nnU-Net's prediction")
    verification = verify(model, predictor, cases, mirroring=settings.mirroring)
    if not verification.agrees and not settings.unverified:
        raise DataProblem(f"the export does not agree with nnU-Net: {verification.sentence()}; nothing was written")
    return verification


def _with_outcome(recipe: Recipe, verification: Verification) -> Recipe:
    return replace(recipe, unverified=None if verification.agrees else f"it differs, {verification.sentence()}")


def _write_rest(recipe: Recipe, verification: Verification | None, folder: Path) -> None:
    _write_recipe(recipe, folder)
    outcome = {"agrees": None, "reason": recipe.unverified} if verification is None else verification.to_json()
    replace_file(folder / VERIFICATION, json.dumps(outcome, indent=4).encode())
    replace_file(folder / "README.txt", _instructions(recipe).encode())
    write_runtime(folder / "predict.pyz")


def _write_recipe(recipe: Recipe, folder: Path) -> None:
    replace_file(folder / RECIPE, _readable(recipe.to_json()).encode())


def _readable(content: dict[str, Any]) -> str:
    """Indented JSON with each list of numbers or names on one line."""
    lists = re.compile(r"(?<=\[)\n[^\[\]{}]*(?=\])")
    return lists.sub(lambda found: re.sub(r"\n +", " ", found[0]).strip(), json.dumps(content, indent=4))


def _instructions(recipe: Recipe) -> str:
    trained = recipe.model
    return (
        f"{trained['dataset']}, {trained['configuration']} ({trained['trainer']}, folds "
        f"{', '.join(trained['folds'])}), exported by nnunet_nas {nnunet_nas.__version__}.\n\n"
        f"Python 3.10 or newer:\n\n"
        f"    pip install numpy scipy onnxruntime {_PACKAGES[recipe.reader]}\n"
        f"    python predict.pyz -i IMAGES -o SEGMENTATIONS\n\n"
        f"IMAGES holds files named CASE_0000{recipe.file_ending}, one per channel "
        f"({', '.join(recipe.channels)}).\n"
    )


def write_runtime(path: Path) -> None:
    """The runtime as one file that Python runs: `python predict.pyz`."""
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch) / "nnunet_nas"
        shutil.copytree(
            Path(runtime.__file__).parent, package / "runtime", ignore=shutil.ignore_patterns("__pycache__")
        )
        for module in (nnunet_nas, errors):
            source = Path(str(module.__file__))
            shutil.copy(source, package / source.name)
        zipapp.create_archive(
            scratch, path, interpreter="/usr/bin/env python3", main="nnunet_nas.runtime.__main__:run", compressed=True
        )
