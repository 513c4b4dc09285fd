"""Readers and writers beside nnU-Net's own, on files made here, and files that nobody can use."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from skimage import io

from nnunet_nas.errors import DataProblem
from nnunet_nas.runtime.images import READERS, read_image, reader

NNUNETS = {
    cls.__name__: cls
    for cls in (SimpleITKIO, SimpleITKIOWithReorient, NibabelIO, NibabelIOWithReorient, NaturalImage2DIO, Tiff3DIO)
}
# Turned about two axes and mirrored: neither RAS nor LPS.
_DIRECTION = (0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, -1.0)


def _volume(path, *, shape=(4, 5, 6), seed=0, kind=np.int16):
    array = np.random.default_rng(seed).integers(0, 200, shape).astype(kind)
    image = sitk.GetImageFromArray(array, isVector=False)
    image.SetSpacing((0.7, 0.8, 3.0, 1.0)[: array.ndim])
    if array.ndim == 3:
        image.SetOrigin((-12.0, 4.0, 33.5))
        image.SetDirection(_DIRECTION)
    sitk.WriteImage(image, str(path))
    return path


def _picture(path, shape, kind=np.uint8):
    io.imsave(path, np.random.default_rng(0).integers(0, 255, shape).astype(kind), check_contrast=False)
    return path


def _stack(path):
    array = np.random.default_rng(0).integers(0, 255, (4, 5, 6)).astype(np.uint16)
    tifffile.imwrite(path, array, photometric="minisblack")
    path.with_name(f"{path.stem[:-5]}.json").write_text(json.dumps({"spacing": [3.0, 0.5, 0.5]}))
    return path


CASES = {
    "SimpleITKIO-3d": ("SimpleITKIO", ".nii.gz", _volume),
    "SimpleITKIO-2d": ("SimpleITKIO", ".mha", lambda path: _volume(path, shape=(5, 6))),
    "SimpleITKIOWithReorient": ("SimpleITKIOWithReorient", ".nii.gz", _volume),
    "NibabelIO": ("NibabelIO", ".nii.gz", _volume),
    "NibabelIOWithReorient": ("NibabelIOWithReorient", ".nii.gz", _volume),
    "NaturalImage2DIO-rgb": ("NaturalImage2DIO", ".png", lambda path: _picture(path, (5, 6, 3))),
    "NaturalImage2DIO-rgba": ("NaturalImage2DIO", ".png", lambda path: _picture(path, (5, 6, 4))),
    "NaturalImage2DIO-16 bit": ("NaturalImage2DIO", ".png", lambda path: _picture(path, (5, 6), np.uint16)),
    "NaturalImage2DIO-tif": ("NaturalImage2DIO", ".tif", lambda path: _picture(path, (5, 6, 3))),
    "NaturalImage2DIO-bmp": ("NaturalImage2DIO", ".bmp", lambda path: _picture(path, (5, 6))),
    "Tiff3DIO": ("Tiff3DIO", ".tif", _stack),
}


@pytest.mark.filterwarnings("ignore:.*are stored as RGB:DeprecationWarning")
@pytest.mark.parametrize("case", CASES)
def test_reads_and_writes_as_nnunet(case, tmp_path):
    name, ending, make = CASES[case]
    file, theirs, ours = make(tmp_path / f"case_0000{ending}"), NNUNETS[name](), reader(name)
    expected, properties = theirs.read_images([str(file)])
    image = ours.read([file])
    np.testing.assert_array_equal(image.array, expected)
    assert image.array.dtype == np.float32
    assert image.spacing == pytest.approx(properties["spacing"])
    labels = np.random.default_rng(1).integers(0, 3, expected.shape[1:]).astype(np.uint8)
    ours.write(labels, tmp_path / f"ours{ending}", image.frame)
    theirs.write_seg(labels, str(tmp_path / f"theirs{ending}"), properties)
    written, reference = (theirs.read_seg(str(tmp_path / f"{who}{ending}")) for who in ("ours", "theirs"))
    np.testing.assert_array_equal(written[0], reference[0])
    if ending in (".nii.gz", ".mha"):
        geometries = [sitk.ReadImage(str(tmp_path / f"{who}{ending}")) for who in ("ours", "theirs")]
        for get in ("GetSpacing", "GetOrigin", "GetDirection", "GetPixelIDTypeAsString"):
            assert getattr(geometries[0], get)() == getattr(geometries[1], get)()


def test_every_reader_is_tried():
    assert {name for name, _, _ in CASES.values()} == set(READERS)


def test_channels_of_one_case_are_stacked(tmp_path):
    files = [_volume(tmp_path / f"case_000{channel}.nii.gz", seed=channel) for channel in range(2)]
    image = read_image(reader("SimpleITKIO"), files, 2)
    assert image.array.shape == (2, 4, 5, 6)
    assert (image.array[0] != image.array[1]).any()


def _truncated(folder):
    file = _volume(folder / "case_0000.nii.gz")
    file.write_bytes(file.read_bytes()[:60])
    return [file], "cannot be read"


def _not_finite(folder):
    image = sitk.GetImageFromArray(np.full((2, 2, 2), np.nan, np.float32))
    sitk.WriteImage(image, str(folder / "case_0000.nrrd"))
    return [folder / "case_0000.nrrd"], "no finite numbers"


def _other_shape(folder):
    files = [_volume(folder / "case_0000.nii.gz"), _volume(folder / "case_0001.nii.gz", shape=(4, 5, 7))]
    return files, r"case_0001.nii.gz has shape \(4, 5, 7\), case_0000.nii.gz \(4, 5, 6\)"


def _too_many(folder):
    return [_volume(folder / f"case_000{channel}.nii.gz") for channel in range(3)], "has 3 channels, .* trained on 1"


def _flat(folder):
    return [_volume(folder / "case_0000.nrrd", shape=(5, 6))], "is a 2-D image, the model reads 3-D images"


def _series(folder):
    return [_volume(folder / "case_0000.nii.gz", shape=(2, 4, 5, 6))], "has 4 dimensions"


def _coloured(folder):
    return [_picture(folder / "case_0000.png", (5, 6, 3))], "has 2 dimensions and 3 values per voxel"


@pytest.mark.parametrize("make", [_truncated, _not_finite, _other_shape, _too_many, _flat, _series, _coloured])
def test_what_cannot_be_used_is_refused_in_one_line(make, tmp_path):
    files, message = make(tmp_path)
    with pytest.raises(DataProblem, match=message) as problem:
        read_image(reader("SimpleITKIO"), files, 1, 3)
    assert "\n" not in str(problem.value)


def _cut(folder):
    file = _picture(folder / "case_0000.png", (50, 60))
    file.write_bytes(file.read_bytes()[:-200])
    return [file], "cannot be read .*: is it whole"


def _no_bytes(folder):
    (folder / "case_0000.png").touch()
    return [folder / "case_0000.png"], "cannot be read"


def _grey_with_alpha(folder):
    return [_picture(folder / "case_0000.png", (5, 6, 2))], r"has shape \(5, 6, 2\): the model reads grey"


@pytest.mark.parametrize("make", [_cut, _no_bytes, _grey_with_alpha])
def test_a_picture_that_cannot_be_used_is_refused_in_one_line(make, tmp_path):
    files, message = make(tmp_path)
    with pytest.raises(DataProblem, match=message) as problem:
        read_image(reader("NaturalImage2DIO"), files, 1)
    assert "\n" not in str(problem.value)


def test_an_image_without_voxels_is_refused(tmp_path):
    with pytest.warns(UserWarning, match="zero-size"):
        tifffile.imwrite(tmp_path / "case_0000.tif", np.zeros((0, 5, 6), np.uint8), photometric="minisblack")
    with pytest.raises(DataProblem, match=r"case_0000\.tif (is empty|cannot be read)"):
        read_image(reader("Tiff3DIO"), [tmp_path / "case_0000.tif"], 1, 3)


def test_an_unknown_reader_is_named():
    with pytest.raises(DataProblem, match="reader OwnIO is unknown"):
        reader("OwnIO")
