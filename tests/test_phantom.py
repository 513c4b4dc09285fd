import contextlib
import io
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from skimage import io as image_io

from nnunet_nas import phantom
from nnunet_nas.cli.main import main
from nnunet_nas.errors import DataProblem, EnvironmentProblem, UsageError
from nnunet_nas.phantom import LABELS, case_rng, phantom_case, write_dataset

SHAPE = (96, 80)


def small(folder: Path, **changes) -> Path:
    settings = {"number": 900, "num_train": 5, "num_test": 2, "shape": (64, 64), "seed": 3, **changes}
    return write_dataset(folder, **settings)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_case_has_the_shape_and_every_class():
    for index in range(6):
        image, label = phantom_case(case_rng(0, index), SHAPE)
        assert image.shape == label.shape == SHAPE
        assert image.dtype == label.dtype == np.uint8
        assert sorted(np.unique(label)) == sorted(LABELS.values())


def test_a_case_follows_from_seed_and_number():
    first = phantom_case(case_rng(1, 4), SHAPE)
    again = phantom_case(case_rng(1, 4), SHAPE)
    np.testing.assert_array_equal(first, again)
    for other in (case_rng(2, 4), case_rng(1, 5), case_rng(1, 4, test=True)):
        assert not np.array_equal(first[0], phantom_case(other, SHAPE)[0])


def test_vessels_are_thin_and_lesions_of_varying_size():
    areas = []
    for index in range(4):
        _, label = phantom_case(case_rng(0, index), (128, 128))
        # A tube of radius 0.017 of 128 pixels is at most 2 * 2.2 pixels wide; bending adds a little.
        assert ndimage.distance_transform_edt(label == LABELS["vessel"]).max() < 4
        components, count = ndimage.label(label == LABELS["lesion"])
        areas += list(np.bincount(components.ravel())[1:])
        assert count >= 1
    assert max(areas) > 4 * min(areas)


def test_noise_is_that_of_a_magnitude_image():
    image, label = phantom_case(case_rng(0, 0), (128, 128))
    corners = np.concatenate([image[:12, :12].ravel(), image[-12:, -12:].ravel()]).astype(float)
    assert label[:12, :12].max() == 0
    # Without signal the magnitude is Rayleigh distributed: mean / deviation = sqrt(pi / (4 - pi)) = 1.913.
    assert corners.mean() / corners.std() == pytest.approx(1.913, rel=0.15)


def test_contrast_varies_between_images():
    ratios = []
    for index in range(6):
        image, label = phantom_case(case_rng(0, index), SHAPE)
        ratios.append(image[label == LABELS["lesion"]].mean() / image[label == LABELS["organ"]].mean())
    assert np.std(ratios) > 0.02


def test_the_same_seed_writes_the_same_files_and_more_cases_keep_the_first_ones(tmp_path):
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder in folders:
        folder.mkdir()
    first, again = content(small(folders[0])), content(small(folders[1]))
    more = content(small(folders[2], num_train=7, num_test=3))
    assert first == again
    assert len(more) == len(first) + 2 * 2 + 2
    assert all(more[name] == data for name, data in first.items() if name.endswith(".png"))


def test_files_are_named_as_nnunet_wants_them_and_say_that_they_are_synthetic(tmp_path):
    folder = small(tmp_path)
    assert folder == tmp_path / "Dataset900_Phantom"
    names = sorted(content(folder))
    assert "imagesTr/phantom_000_0000.png" in names
    assert "labelsTr/phantom_004.png" in names
    assert "imagesTs/phantom_test_001_0000.png" in names
    assert len(names) == 1 + 2 * 5 + 2 * 2
    description = json.loads((folder / "dataset.json").read_text())
    assert "synthetic" in description["name"].lower()
    assert "synthetic" in description["description"].lower()
    assert sorted(description["labels"].values()) == [0, 1, 2, 3]
    assert description["numTraining"] == 5
    assert set(np.unique(image_io.imread(folder / "labelsTr" / "phantom_000.png"))) == {0, 1, 2, 3}


def test_others_may_read_the_folder_as_the_umask_says(tmp_path):
    mask = os.umask(0o022)
    try:
        folder = small(tmp_path)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_nnunet_finds_nothing_wrong(tmp_path, monkeypatch):
    integrity = pytest.importorskip("nnunetv2.experiment_planning.verify_dataset_integrity")

    class InProcess:
        """Stands in for nnU-Net's pool: a worker would take longer to start than to check five images."""

        def __init__(self, *_: object) -> None: ...

        def __enter__(self):
            return self

        def __exit__(self, *_: object) -> None: ...

        def starmap(self, function, arguments):
            return [function(*each) for each in arguments]

    context = type("Context", (), {"Pool": InProcess})
    monkeypatch.setattr(integrity.multiprocessing, "get_context", lambda _: context)
    integrity.verify_dataset_integrity(str(small(tmp_path)), 1)


def test_an_existing_data_set_is_left_as_it_is(tmp_path):
    before = content(small(tmp_path))
    with pytest.raises(DataProblem, match="Dataset900_Phantom exists"):
        small(tmp_path, seed=4)
    assert content(tmp_path / "Dataset900_Phantom") == before
    assert [path.name for path in tmp_path.iterdir()] == ["Dataset900_Phantom"]


def test_a_number_that_another_data_set_has_is_refused(tmp_path):
    (tmp_path / "Dataset900_Real").mkdir()
    with pytest.raises(DataProblem, match="Dataset900_Real exists"):
        small(tmp_path)


@pytest.mark.parametrize(("error", "seen"), [(KeyboardInterrupt, KeyboardInterrupt), (OSError, EnvironmentProblem)])
def test_an_interruption_leaves_nothing(tmp_path, monkeypatch, error, seen):
    def draw(rng, shape, calls=[]):  # noqa: B006 - counts the calls
        calls.append(None)
        if len(calls) == 3:
            raise error(28, "No space left on device")
        return phantom_case(rng, shape)

    monkeypatch.setattr(phantom, "phantom_case", draw)
    with pytest.raises(seen):
        small(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes", [{"number": 0}, {"number": 1000}, {"num_train": 4}, {"num_test": -1}, {"shape": (64, 63)}, {"seed": -1}]
)
def test_values_out_of_range_are_usage_errors(tmp_path, changes):
    with pytest.raises(UsageError):
        small(tmp_path, **changes)


def run(*arguments: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["phantom", *arguments])
    return code, out.getvalue(), err.getvalue()


def test_the_command_writes_into_nnunet_raw_and_names_the_next_command(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    code, out, err = run("-d", "7", "-n", "5", "-n_test", "1", "-size", "64")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "next: nnUNetv2_plan_and_preprocess -d 7 -c 2d"
    assert (tmp_path / "Dataset007_Phantom" / "imagesTs" / "phantom_test_000_0000.png").is_file()


def test_the_command_prints_json(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    code, out, _ = run("-d", "7", "-n", "5", "-n_test", "1", "-size", "64", "-seed", "2", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["dataset"] == "Dataset007_Phantom"
    assert (report["training_cases"], report["test_cases"], report["seed"]) == (5, 1, 2)
    assert report["synthetic"] is True


def test_the_command_s_errors_have_their_exit_codes(tmp_path, monkeypatch):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    assert run("-d", "7")[0] == 3
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    assert run("-d", "Dataset007_Phantom")[0] == 2
    (tmp_path / "Dataset007_Real").mkdir()
    code, _, err = run("-d", "7")
    assert code == 4
    assert len(err.splitlines()) == 1
