"""`nnunet_nas doctor`: each fault is one row with its mend, and no fault ends the doctor itself.

The checks meet machines that have a fault; one test probes the machine that the tests run on.
"""

import json
import os
import subprocess
import sys
from collections import namedtuple
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

import nnunet_nas
from nnunet_nas import diagnosis, nnunet_contract
from nnunet_nas.cli.main import main
from nnunet_nas.diagnosis import Check

ROOT = Path(nnunet_nas.__file__).resolve().parents[1]
GIB = 1024**3


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in ("nnUNet_extTrainer", "nnUNet_compile", "nnUNet_n_proc_DA", "CUDA_VISIBLE_DEVICES", "CC"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def free_space(monkeypatch):
    """Sets what every disk has left, in GiB."""

    def leave(gib):
        usage = namedtuple("Usage", "total used free")(1000 * GIB, 0, int(gib * GIB))
        monkeypatch.setattr(diagnosis.shutil, "disk_usage", lambda path: usage)

    leave(100)
    return leave


@pytest.fixture
def installed(monkeypatch):
    """Sets version and import error of packages."""

    def have(**packages):
        monkeypatch.setattr(diagnosis, "load", lambda name: packages.get(name, ("1.0", "")))

    return have


@pytest.fixture
def gpus(monkeypatch):
    """Sets the GPUs that torch sees, by free GiB of 24; convolutions run on the CPU, or fail with `error`."""

    def have(*free, error=None):
        def conv2d(image, kernel):
            if error:
                raise RuntimeError(error)
            return image

        def ones(*size, device):
            return torch.zeros(*size)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(free))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "GPU of a test")
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (int(free[index] * GIB), 24 * GIB))
        monkeypatch.setattr(torch, "ones", ones)
        monkeypatch.setattr(torch.nn.functional, "conv2d", conv2d)

    return have


class TestFolders:
    def test_a_folder_is_shown_with_its_data_sets_and_free_space(self, monkeypatch, tmp_path, free_space):
        (tmp_path / "Dataset004_Toy").mkdir()
        monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
        expected = Check("nnUNet_preprocessed", "ok", f"{tmp_path}, 1 data set, 100.0 GiB free")
        assert list(diagnosis.check_folder("nnUNet_preprocessed")) == [expected]

    def test_unset_and_missing_are_problems_with_their_mend(self, monkeypatch, tmp_path):
        monkeypatch.delenv("nnUNet_results", raising=False)
        (check,) = diagnosis.check_folder("nnUNet_results")
        assert (check.status, check.found) == ("problem", "nnUNet_results is not set")
        assert check.mend.startswith("export nnUNet_results=")
        monkeypatch.setenv("nnUNet_results", str(tmp_path / "gone"))
        (check,) = diagnosis.check_folder("nnUNet_results")
        assert (check.status, check.mend) == ("problem", "create it or correct the variable")

    @pytest.mark.parametrize(("variable", "status"), [("nnUNet_raw", "ok"), ("nnUNet_results", "problem")])
    def test_read_only_is_a_problem_except_for_raw_data(self, monkeypatch, tmp_path, variable, status):
        def refuse(dir):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setenv(variable, str(tmp_path))
        monkeypatch.setattr("nnunet_nas.files.tempfile.TemporaryFile", refuse)
        (check,) = diagnosis.check_folder(variable)
        assert check.status == status
        assert check.found.startswith(f"{tmp_path}, 0 data sets")

    def test_little_space_is_a_warning(self, monkeypatch, tmp_path, free_space):
        monkeypatch.setenv("nnUNet_results", str(tmp_path))
        free_space(2)
        (check,) = diagnosis.check_folder("nnUNet_results")
        assert (check.status, check.found) == ("warning", f"{tmp_path}, 0 data sets, 2.0 GiB free")


class TestExternalTrainers:
    def test_unset_is_fine(self):
        assert [check.status for check in diagnosis.check_trainers()] == ["ok"]

    @pytest.mark.parametrize(
        ("folder", "reason"),
        [
            (ROOT / "nnunet_nas", "cannot be pickled"),
            (ROOT, "would import them all"),
            (Path(os.__file__).parent / "gone", "is not a folder"),
            (Path(pytest.__file__).parents[1], "would import them all"),
        ],
        ids=["package", "holds the package", "missing", "site-packages"],
    )
    def test_folders_that_nnunet_cannot_search_are_problems(self, monkeypatch, folder, reason):
        monkeypatch.setenv("nnUNet_extTrainer", str(folder))
        (check,) = diagnosis.check_trainers()
        assert check.status == "problem"
        assert reason in check.found
        assert check.mend == "export nnUNet_extTrainer=$(nnunet_nas ext_path)"

    def test_a_module_that_cannot_be_imported_is_a_problem_of_its_folder_alone(self, monkeypatch, tmp_path):
        (tmp_path / "empty").mkdir()
        (tmp_path / "trainers_that_fail.py").write_text("import sys; sys.exit('no')", encoding="utf-8")
        monkeypatch.setenv("nnUNet_extTrainer", f"{tmp_path}{os.pathsep}{os.pathsep}{tmp_path / 'empty'}")
        broken, fine = diagnosis.check_trainers()
        assert (broken.status, fine.status) == ("problem", "ok")
        assert "SystemExit: no" in broken.found
        assert fine.found == f"{tmp_path / 'empty'}: no trainers"


MISSING = "ModuleNotFoundError: No module named"


@pytest.mark.parametrize(
    ("name", "there", "found"),
    [
        ("scipy", ("1.17.1", ""), ("ok", "1.17.1")),
        ("nnunetv2", ("", f"{MISSING} 'nnunetv2'"), ("problem", "not installed")),
        ("nnunetv2", ("2.7.1", ""), ("problem", "2.7.1, but >=2.8,<3 is needed")),
        ("nnunetv2", ("3.0", ""), ("problem", "3.0, but >=2.8,<3 is needed")),
        ("nnunetv2", ("2.8.1", ""), ("ok", "2.8.1")),
        ("nnunetv2", ("2.9.0", ""), ("ok", "2.9.0 (nnunet_nas was run with 2.8.1)")),
        ("blosc2", ("4.1", "ImportError: libfoo.so"), ("problem", "4.1, cannot be imported: ImportError: libfoo.so")),
        # nnU-Net 2.8 declares torch!=2.9.*,>=2.1.2
        ("torch", ("2.9.1+cu128", ""), ("problem", "2.9.1+cu128, but !=2.9.*,>=2.1.2 is needed")),
    ],
)
def test_a_package_is_there_imports_and_has_a_version_that_fits(installed, name, there, found):
    installed(**{name: there})
    (check,) = diagnosis.check_package(name)
    assert (check.status, check.found) == found
    assert (check.mend == "") == (check.status == "ok")
    if found == ("problem", "not installed"):
        assert check.mend == "pip install 'nnunetv2>=2.8,<3'"


class TestPair:
    NMS = "RuntimeError: operator torchvision::nms does not exist"
    CUDA = "RuntimeError: Detected that PyTorch and torchvision were compiled with different CUDA major versions."

    @pytest.mark.parametrize(
        ("torch", "torchvision", "says"),
        [
            (
                ("2.15.0+cpu", ""),
                ("0.29.2", NMS),
                "torch is CPU-only, torchvision was built for another torch (operator",
            ),
            (("2.15.0+cu118", ""), ("0.29.2+cu132", CUDA), "different CUDA versions"),
            (("2.15.0+cpu", ""), ("0.29.2+cu132", ""), "built for cpu and cu132"),
            (("2.15.0+cpu", ""), ("", f"{MISSING} 'torchvision'"), "torchvision missing"),
            (("2.15.0", "ImportError: libcudart.so"), ("0.29.2", ""), "torch 2.15.0"),
        ],
    )
    def test_what_does_not_match_is_named_and_installed_anew_together(self, installed, torch, torchvision, says):
        installed(torch=torch, torchvision=torchvision)
        (check,) = diagnosis.check_pair()
        assert check.status == "problem"
        assert says in check.found
        assert "pip install --force-reinstall torch torchvision" in check.mend

    @pytest.mark.parametrize(("torch", "torchvision"), [("2.15.0+cpu", "0.29.2+cpu"), ("2.15.0+cu132", "0.29.2")])
    def test_what_can_be_imported_together_and_names_no_other_build_matches(self, installed, torch, torchvision):
        installed(torch=(torch, ""), torchvision=(torchvision, ""))
        assert [check.status for check in diagnosis.check_pair()] == ["ok"]


class TestInterface:
    def test_each_change_of_nnunet_is_a_row_with_what_to_do(self, monkeypatch):
        monkeypatch.setattr(nnunet_contract, "changes", lambda: ["nnunetv2 2.9.0: a has lost `b`: c", "another"])
        checks = list(diagnosis.check_contract())
        assert [check.found for check in checks] == ["nnunetv2 2.9.0: a has lost `b`: c", "another"]
        assert {check.status for check in checks} == {"problem"}
        assert checks[0].mend == "update nnunet_nas, or install nnunetv2 2.8.1"

    def test_no_change_is_one_row_and_without_nnunet_nothing_is_known(self, installed):
        assert [check.status for check in diagnosis.check_contract()] == ["ok"]
        installed(nnunetv2=("", f"{MISSING} 'nnunetv2'"))
        assert [check.status for check in diagnosis.check_contract()] == ["problem"]


class TestDevice:
    def test_gpus_are_named_with_their_memory(self, gpus):
        gpus(23, 2)
        assert [(check.name, check.status, check.found) for check in diagnosis.check_device()] == [
            ("device cuda:0", "ok", "GPU of a test, 23.0 of 24.0 GiB free"),
            ("device cuda:1", "warning", "GPU of a test, 2.0 of 24.0 GiB free"),
        ]

    def test_a_gpu_that_cannot_compute_is_a_problem(self, gpus):
        gpus(23, error="no kernel image is available for execution on the device")
        (check,) = diagnosis.check_device()
        assert check.status == "problem"
        assert "no kernel image" in check.found

    @pytest.mark.parametrize(
        ("machine", "says", "mend"),
        [
            ((False, None, None), "threads", "-device cpu"),
            ((True, None, None), "torch is built for CPU only", "built for CUDA"),
            ((True, "13.2", None), "CUDA is not usable (driver too old)", "CUDA 13.2 or newer"),
            ((True, "13.2", ""), "CUDA_VISIBLE_DEVICES=''", "unset CUDA_VISIBLE_DEVICES"),
        ],
    )
    def test_cpu_only_is_a_warning_that_says_why(self, monkeypatch, machine, says, mend):
        driver, build, hidden = machine

        def no_cuda():
            diagnosis.warnings.warn("driver too old", stacklevel=1)
            return False

        monkeypatch.setattr(torch.cuda, "is_available", no_cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
        monkeypatch.setattr(torch.version, "cuda", build)
        monkeypatch.setattr(diagnosis, "_driver_present", lambda: driver)
        if hidden is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        (check,) = diagnosis.check_device()
        assert check.status == "warning"
        assert check.found.startswith("CPU only, 8 threads")
        assert says in check.found
        assert mend in check.mend

    def test_an_apple_gpu_and_no_torch(self, monkeypatch, gpus, installed):
        gpus()
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
        assert ["-device mps" in check.found for check in diagnosis.check_device()] == [True]
        installed(torch=("", f"{MISSING} 'torch'"))
        assert [check.status for check in diagnosis.check_device()] == ["problem"]


class TestCompile:
    """nnU-Net compiles on CUDA unless `nnUNet_compile` is set to something that is not true, 1 or t."""

    @pytest.mark.parametrize(
        ("value", "missing", "found"),
        [
            (None, [], ("ok", "on for training")),
            ("T", [], ("ok", "on for training and prediction")),
            ("0", ["a C compiler"], ("ok", "switched off")),
            ("yes", [], ("warning", "means off to nnU-Net")),
            (None, ["a C compiler", "Python.h"], ("problem", "without a C compiler and Python.h")),
        ],
    )
    def test_on_a_gpu_the_variable_decides(self, monkeypatch, gpus, value, missing, found):
        gpus(23)
        monkeypatch.setattr(diagnosis, "_missing_for_compilation", lambda: missing)
        if value is not None:
            monkeypatch.setenv("nnUNet_compile", value)
        (check,) = diagnosis.check_compile()
        assert check.status == found[0]
        assert check.found.endswith(found[1])

    def test_on_a_cpu_nothing_is_compiled_or_needed(self, monkeypatch, gpus):
        gpus()
        monkeypatch.setattr(diagnosis, "_missing_for_compilation", lambda: ["a C compiler"])
        (check,) = diagnosis.check_compile()
        assert check.status == "ok"
        assert "does not compile" in check.found

    def test_a_compiler_is_looked_for_where_cc_says_and_under_its_usual_names(self, monkeypatch):
        monkeypatch.setattr(diagnosis.shutil, "which", lambda name: name == "clang-99" or None)
        assert "a C compiler" in diagnosis._missing_for_compilation()
        monkeypatch.setenv("CC", "clang-99 -O2")
        assert "a C compiler" not in diagnosis._missing_for_compilation()


@pytest.mark.parametrize(
    ("value", "usable", "status", "found"),
    [
        ("many", 4, "problem", "'many' is not a number of workers: training would stop"),
        ("2", 4, "ok", "2, 4 CPU cores usable"),
        (None, 64, "ok", "not set; nnU-Net takes 12 workers, 64 CPU cores usable"),
        (None, 2, "warning", "not set; nnU-Net takes 12 workers, 2 CPU cores usable"),
    ],
)
def test_workers_are_a_number_that_the_usable_cores_can_carry(monkeypatch, value, usable, status, found):
    if value is not None:
        monkeypatch.setenv("nnUNet_n_proc_DA", value)
    monkeypatch.setattr(diagnosis.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(diagnosis, "_usable_cpus", lambda: usable)
    (check,) = diagnosis.check_workers()
    assert (check.status, check.found) == (status, found)


def test_no_workers_are_no_number_to_plan_with(monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    (check,) = diagnosis.check_workers()
    assert check.status == "warning"
    assert check.found.endswith("usable; trainings load in their own process, but nnU-Net's planning does not take 0")
    assert check.mend == "plan with: env -u nnUNet_n_proc_DA nnUNetv2_plan_and_preprocess ..."
    with pytest.raises(RuntimeError, match="expects a positive integer"):  # the warning's reason: gone, both can go
        ExperimentPlanner.static_estimate_VRAM_usage((8, 8), 1, 2, "torch.nn.Identity", {}, ())


def test_little_shared_memory_matters_where_there_are_workers(monkeypatch, tmp_path, free_space):
    free_space(1 / 16)
    assert [check.status for check in diagnosis.check_shared_memory(tmp_path)] == ["warning"]
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    assert [check.status for check in diagnosis.check_shared_memory(tmp_path)] == ["ok"]


class TestProbe:
    """Imports happen in another process, whatever they do there."""

    @pytest.fixture(autouse=True)
    def modules(self, tmp_path, monkeypatch):
        """A diagnosis whose only checks are those of packages that the tests write."""
        monkeypatch.syspath_prepend(str(tmp_path))
        (tmp_path / "sitecustomize.py").write_text(
            "import sys\nfrom functools import partial\nfrom nnunet_nas import diagnosis\n"
            "for name in ('fine', 'bad', 'fatal', 'slow'):\n"
            "    diagnosis._IMPORTING[name] = partial(diagnosis.check_package, name)\n",
            encoding="utf-8",
        )
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
        loud = "import os; print('welcome'); os.system('echo hello'); __version__ = '1.2+cpu'"
        for name, code in {
            "fine": loud,
            "fatal": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            "slow": "import time; time.sleep(60)",
        }.items():
            (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
        return tmp_path

    def test_what_a_package_prints_does_not_disturb_and_its_own_version_shows_the_build(self):
        assert diagnosis.probe(("fine",)) == [Check("fine", "ok", "1.2+cpu")]

    @pytest.mark.parametrize(
        ("code", "says"),
        [
            ("raise RuntimeError('operator torchvision::nms\\ndoes not exist')", "nms does not exist"),
            ("import sys; sys.exit('wrong machine')", "SystemExit: wrong machine"),
        ],
    )
    def test_an_import_that_raises_is_a_finding_and_the_next_one_goes_on(self, modules, code, says):
        (modules / "bad.py").write_text(code, encoding="utf-8")
        bad, fine = diagnosis.probe(("bad", "fine"))
        assert bad.status == "problem"
        assert says in bad.found
        assert fine.status == "ok"

    def test_an_import_that_ends_the_interpreter_is_named_with_what_was_not_reached(self):
        fine, fatal, unreached = diagnosis.probe(("fine", "fatal", "scipy"))
        assert fine.status == "ok"
        assert (fatal.status, fatal.found) == ("problem", "checking it ended the interpreter (exit code -9)")
        assert unreached.found == "not reached: checking fatal ended the interpreter (exit code -9)"

    def test_a_process_that_ends_badly_after_its_last_check_has_told_everything(self, modules):
        code = "import atexit, os, signal; atexit.register(os.kill, os.getpid(), signal.SIGKILL); __version__ = '1'"
        (modules / "bad.py").write_text(code, encoding="utf-8")
        assert diagnosis.probe(("bad",)) == [Check("bad", "ok", "1")]

    def test_an_import_that_hangs_is_given_up(self, monkeypatch):
        monkeypatch.setattr(diagnosis, "_PROBE_SECONDS", 3.0)
        (slow,) = diagnosis.probe(("slow",))
        assert (slow.name, slow.status, slow.found) == ("slow", "problem", "checking it took longer than 3 s")


class TestCommand:
    @pytest.mark.parametrize(
        ("statuses", "code"), [(["ok"], 0), (["ok", "warning"], 0), (["warning", "problem", "ok"], 3)]
    )
    def test_problems_fail_and_warnings_do_not(self, monkeypatch, capsys, statuses, code):
        checks = [Check(f"check {index}", status, "found this") for index, status in enumerate(statuses)]
        monkeypatch.setattr(diagnosis, "diagnose", lambda: checks)
        assert main(["doctor"]) == code
        capsys.readouterr()
        assert main(["doctor", "--json"]) == code
        assert [row["status"] for row in json.loads(capsys.readouterr().out)["checks"]] == statuses

    def test_the_report_shows_each_mend_below_its_finding_and_counts(self, monkeypatch, capsys):
        checks = [Check("python", "ok", "3.11"), Check("torch", "problem", "not installed", "pip install torch")]
        monkeypatch.setattr(diagnosis, "diagnose", lambda: checks)
        main(["doctor"])
        output = capsys.readouterr()
        assert output.out.splitlines() == [
            "ok       python  3.11",
            "problem  torch   not installed",
            "                 -> pip install torch",
            "1 problem, 0 warnings",
        ]
        assert output.err == "next: mend the problems, then nnunet_nas doctor\n"

    def test_a_check_that_fails_itself_is_a_row(self, monkeypatch, capsys):
        def fail():
            raise ZeroDivisionError("oh")

        monkeypatch.setattr(diagnosis, "probe", lambda names: [])
        monkeypatch.setitem(diagnosis._HERE, "nnUNet_n_proc_DA", fail)
        assert main(["doctor", "--json"]) == 3
        rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["checks"]}
        assert rows["nnUNet_n_proc_DA"]["found"] == "could not be checked: ZeroDivisionError: oh"

    @pytest.mark.integration
    def test_this_machine_with_our_trainers(self, tmp_path):
        ours = str(ROOT / "nnunet_nas" / "ext_trainers")
        folders = {name: str(tmp_path) for name in ("nnUNet_raw", "nnUNet_preprocessed")}
        environment = {**os.environ, **folders, "nnUNet_extTrainer": ours}
        environment.pop("nnUNet_results", None)
        command = [sys.executable, "-m", "nnunet_nas.cli.main", "doctor", "--json"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.stderr == ""
        rows = {row["name"]: row for row in json.loads(done.stdout)["checks"]}
        assert done.returncode == 3
        assert rows["nnUNet_results"]["status"] == "problem"
        assert rows["nnUNet_extTrainer"] == {
            "name": "nnUNet_extTrainer",
            "status": "ok",
            "found": f"{ours}: nnUNetTrainerDiNTSSearch, nnUNetTrainerDistill, nnUNetTrainerIACLTHSearch, "
            "nnUNetTrainerIACRetrofit, nnUNetTrainerIACSearch, nnUNetTrainerScheduled",
            "mend": "",
        }
        for name in ("numpy", "torch", "nnunetv2", "blosc2"):
            assert rows[name]["found"].startswith(version(name))
        assert rows["torch and torchvision"]["status"] == "ok"
        assert rows["nnU-Net's interface"]["status"] == "ok"
