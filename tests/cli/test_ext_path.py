"""`nnunet_nas ext_path` prints the folder with the one module that nnU-Net is to discover."""

import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import nnunet_nas
from nnunet_nas.cli import ext_path
from nnunet_nas.cli.main import main


def test_prints_the_folder_and_nothing_else(capfd):
    assert main(["ext_path"]) == 0
    output = capfd.readouterr()
    assert output.out == f"{Path(nnunet_nas.__file__).resolve().parent / 'ext_trainers'}\n"
    assert output.err == ""


def test_the_folder_is_no_package_and_holds_exactly_one_module():
    modules = list(pkgutil.iter_modules([str(ext_path.external_trainers_folder())]))
    assert [(module.name, module.ispkg) for module in modules] == [("nnunet_nas_trainers", False)]
    assert not (ext_path.external_trainers_folder() / "__init__.py").exists()


def test_the_folder_is_absolute_wherever_one_stands(tmp_path):
    root = Path(nnunet_nas.__file__).resolve().parents[1]
    command = [sys.executable, "-m", "nnunet_nas.cli.main", "ext_path"]
    environment = {**os.environ, "PYTHONPATH": os.path.relpath(root, tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{root / 'nnunet_nas' / 'ext_trainers'}\n"


def test_an_incomplete_installation_is_an_environment_problem(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(ext_path, "external_trainers_folder", lambda: tmp_path / "ext_trainers")
    assert main(["ext_path"]) == 3
    output = capsys.readouterr()
    assert output.out == ""
    assert "install nnunet-nas again" in output.err


@pytest.mark.parametrize("heavy", ["torch", "nnunetv2", "numpy"])
def test_answers_without_heavy_imports(heavy):
    code = f"import sys; from nnunet_nas.cli.main import main; main(['ext_path']); sys.exit({heavy!r} in sys.modules)"
    root = Path(nnunet_nas.__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, stdout=subprocess.DEVNULL)
