"""`nnunet_nas doctor`: each fault is one row with its mend, and no fault ends the doctor itself.

The checks are given findings of machines that have a fault; one test probes the machine that the tests run on.
"""

import json
import os
import subprocess
import sys
from collections import namedtuple
from importlib.metadata import version
from pathlib import Path

import pytest

import nnunet_nas
from nnunet_nas import diagnosis
from nnunet_nas.cli.main import main
from nnunet_nas.diagnosis import Check
from nnunet_nas.probing import PACKAGES, Findings, Package, probe

ROOT = Path(nnunet_nas.__file__).resolve().parents[1]
GIB = 1024**3


def torch_facts(**changes):
    """A CPU-only machine, with changes."""
    return Findings(torch={"cuda_build": None, "mps": False, "threads": 8, "gpus": [], "reason": "", **changes})


def gpu(**changes):
    return {"name": "GPU of a test", "free": 23 * GIB, "total": 24 * GIB, "error": None, **changes}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in ("nnUNet_extTrainer", "nnUNet_compile", "nnUNet_n_proc_DA", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def roomy(monkeypatch):
    """Disks with 100 GiB of free space, whatever the disk of the tests has."""
    monkeypatch.setattr(diagnosis.shutil, "disk_usage", lambda path: usage(100 * GIB))


def usage(free):
    return namedtuple("Usage", "total used free")(1000 * GIB, 0, free)


class TestFolders:
    def test_a_folder_is_shown_with_its_data_sets_and_free_space(self, monkeypatch, tmp_path, roomy):
        (tmp_path / "Dataset004_Toy").mkdir()
        monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
        expected = Check("nnUNet_preprocessed", "ok", f"{tmp_path}, 1 data set, 100.0 GiB free")
        assert diagnosis.check_folder("nnUNet_preprocessed") == expected

    def test_an_unset_variable_is_a_problem_mended_by_an_export(self, monkeypatch):
        monkeypatch.delenv("nnUNet_results", raising=False)
        check = diagnosis.check_folder("nnUNet_results")
        assert (check.status, check.found) == ("problem", "nnUNet_results is not set")
        assert check.mend.startswith("export nnUNet_results=")

    def test_a_missing_folder_is_a_problem(self, monkeypatch, tmp_path):
        monkeypatch.setenv("nnUNet_results", str(tmp_path / "gone"))
        check = diagnosis.check_folder("nnUNet_results")
        assert (check.status, check.mend) == ("problem", "create it or correct the variable")

    @pytest.mark.parametrize(("variable", "status"), [("nnUNet_raw", "ok"), ("nnUNet_results", "problem")])
    def test_read_only_is_a_problem_except_for_raw_data(self, monkeypatch, tmp_path, variable, status):
        def refuse(dir):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setenv(variable, str(tmp_path))
        monkeypatch.setattr("nnunet_nas.files.tempfile.TemporaryFile", refuse)
        assert diagnosis.check_folder(variable).status == status

    def test_little_space_is_a_warning(self, monkeypatch, tmp_path):
        monkeypatch.setenv("nnUNet_results", str(tmp_path))
        monkeypatch.setattr(diagnosis.shutil, "disk_usage", lambda path: usage(2 * GIB))
        check = diagnosis.check_folder("nnUNet_results")
        assert check.status == "warning"
        assert "2.0 GiB free" in check.found


class TestExternalTrainers:
    def test_unset_is_fine(self):
        folders, complaints = diagnosis.external_folders("")
        assert (folders, complaints) == ([], [])
        assert [check.status for check in diagnosis.check_trainers("", [], Findings())] == ["ok"]

    def test_our_own_folder_and_others_are_searched_in_order(self, tmp_path):
        ours = str(ROOT / "nnunet_nas" / "ext_trainers")
        assert diagnosis.external_folders(f"{tmp_path}{os.pathsep}{os.pathsep}{ours}") == ([str(tmp_path), ours], [])

    @pytest.mark.parametrize(
        ("folder", "reason"),
        [
            (ROOT / "nnunet_nas", "cannot be pickled"),
            (ROOT / "nnunet_nas" / "xtiny", "cannot be pickled"),
            (ROOT, "would import them all"),
            (Path(os.__file__).parent / "gone", "is not a folder"),
            (Path(pytest.__file__).parents[1], "would import them all"),
        ],
        ids=["package", "in the package", "holds the package", "missing", "site-packages"],
    )
    def test_folders_that_nnunet_cannot_search_are_problems(self, folder, reason):
        folders, (complaint,) = diagnosis.external_folders(str(folder))
        assert folders == []
        assert complaint.status == "problem"
        assert reason in complaint.found
        assert complaint.mend == "export nnUNet_extTrainer=$(nnunet_nas ext_path)"

    def test_visible_trainers_are_listed(self):
        findings = Findings(trainers={"/a": ["TrainerA", "TrainerB"], "/b": "a module in it cannot be imported (x)"})
        first, second = diagnosis.check_trainers("/a:/b", ["/a", "/b"], findings)
        assert (first.status, first.found) == ("ok", "/a: TrainerA, TrainerB")
        assert second.status == "problem"


class TestPackages:
    def test_an_importable_package_shows_its_version(self):
        findings = Findings({"scipy": Package("1.17.1")})
        assert diagnosis.check_package("scipy", findings) == Check("scipy", "ok", "1.17.1")

    def test_a_missing_package_is_mended_by_pip(self):
        findings = Findings({"nnunetv2": Package(None, "ModuleNotFoundError: No module named 'nnunetv2'")})
        check = diagnosis.check_package("nnunetv2", findings)
        assert (check.status, check.found, check.mend) == (
            "problem",
            "not installed",
            "pip install 'nnunetv2>=2.8,<2.9'",
        )

    @pytest.mark.parametrize("found", ["2.7.1", "2.9.0", "1.7.0"])
    def test_another_nnunet_is_a_problem(self, found):
        check = diagnosis.check_package("nnunetv2", Findings({"nnunetv2": Package(found)}))
        assert (check.status, check.found) == ("problem", f"{found}, but >=2.8,<2.9 is needed")

    @pytest.mark.parametrize("found", ["2.8", "2.8.1", "2.8.9"])
    def test_nnunet_2_8_is_fine(self, found):
        assert diagnosis.check_package("nnunetv2", Findings({"nnunetv2": Package(found)})).status == "ok"

    def test_a_version_that_nnunet_declares_unfit_is_a_problem(self):
        # nnU-Net 2.8 declares torch!=2.9.*,>=2.1.2
        assert diagnosis.check_package("torch", Findings({"torch": Package("2.9.1+cu128")})).status == "problem"
        assert diagnosis.check_package("torch", Findings({"torch": Package("2.8.0+cu128")})).status == "ok"

    def test_an_import_that_fails_is_a_problem_with_its_reason(self):
        check = diagnosis.check_package("blosc2", Findings({"blosc2": Package("4.1", "ImportError: libfoo.so")}))
        assert (check.status, check.found) == ("problem", "4.1, cannot be imported: ImportError: libfoo.so")


class TestPair:
    NMS = "RuntimeError: operator torchvision::nms does not exist"
    CUDA = "RuntimeError: Detected that PyTorch and torchvision were compiled with different CUDA major versions."

    @pytest.mark.parametrize(
        ("torch", "torchvision", "says"),
        [
            (Package("2.15.0+cpu"), Package("0.29.2", NMS), "torch is CPU-only, torchvision was built for"),
            (Package("2.15.0+cu132"), Package("0.20.1", NMS), "torch is of another build"),
            (Package("2.15.0+cu118"), Package("0.29.2+cu132", CUDA), "different CUDA versions"),
            (Package("2.15.0+cpu"), Package("0.29.2+cu132"), "built for cpu and cu132"),
            (Package("2.15.0+cpu"), Package(None, "No module named 'torchvision'"), "torchvision missing"),
            (Package("2.15.0"), Package("0.29.2", "ImportError: libc10.so"), "libc10.so"),
            (Package("2.15.0", "ImportError: libcudart.so"), Package("0.29.2"), "torch 2.15.0"),
        ],
    )
    def test_what_does_not_match_is_named_and_installed_anew_together(self, torch, torchvision, says):
        check = diagnosis.check_pair(Findings({"torch": torch, "torchvision": torchvision}))
        assert check.status == "problem"
        assert says in check.found
        assert "pip install --force-reinstall torch torchvision" in check.mend

    def test_the_operator_that_users_search_for_is_named(self):
        findings = Findings({"torch": Package("2.15.0+cpu"), "torchvision": Package("0.29.2", self.NMS)})
        assert "operator torchvision::nms does not exist" in diagnosis.check_pair(findings).found

    @pytest.mark.parametrize(
        ("torch", "torchvision"), [("2.15.0+cpu", "0.29.2+cpu"), ("2.15.0", "0.29.2"), ("2.15.0+cu132", "0.29.2")]
    )
    def test_what_can_be_imported_together_and_names_no_other_build_matches(self, torch, torchvision):
        findings = Findings({"torch": Package(torch), "torchvision": Package(torchvision)})
        assert diagnosis.check_pair(findings).status == "ok"


class TestDevice:
    def test_gpus_are_named_with_their_memory(self):
        checks = diagnosis.check_device(torch_facts(gpus=[gpu(), gpu(free=2 * GIB)]), True)
        assert [(check.name, check.status) for check in checks] == [
            ("device cuda:0", "ok"),
            ("device cuda:1", "warning"),
        ]
        assert checks[0].found == "GPU of a test, 23.0 of 24.0 GiB free"
        assert checks[1].found == "GPU of a test, 2.0 of 24.0 GiB free"

    def test_a_gpu_that_cannot_compute_is_a_problem(self):
        broken = gpu(error="AcceleratorError: no kernel image is available for execution on the device")
        (check,) = diagnosis.check_device(torch_facts(gpus=[broken]), True)
        assert check.status == "problem"
        assert "no kernel image" in check.found

    def test_cpu_only_is_a_warning_that_says_what_it_means(self):
        check = diagnosis.check_device(torch_facts(), False)
        assert (check.status, check.found) == ("warning", "CPU only, 8 threads")
        assert "-device cpu" in check.mend

    def test_a_driver_beside_a_cpu_only_torch_is_said(self):
        check = diagnosis.check_device(torch_facts(), True)
        assert check.status == "warning"
        assert "torch is built for CPU only" in check.found
        assert "built for CUDA" in check.mend

    def test_hidden_gpus_and_old_drivers_are_told_apart(self, monkeypatch):
        findings = torch_facts(cuda_build="13.2", reason="The NVIDIA driver on your system is too old")
        assert "too old" in diagnosis.check_device(findings, True).found
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert "CUDA_VISIBLE_DEVICES=''" in diagnosis.check_device(findings, True).found

    def test_an_apple_gpu(self):
        assert "-device mps" in diagnosis.check_device(torch_facts(mps=True), False).found

    def test_without_torch_there_is_no_device(self):
        assert diagnosis.check_device(Findings(), False).status == "problem"


class TestCompile:
    """nnU-Net compiles on CUDA unless `nnUNet_compile` is set to something that is not true, 1 or t."""

    @pytest.mark.parametrize(
        ("value", "status", "says"),
        [
            (None, "ok", "on for training"),
            ("T", "ok", "on for training and prediction"),
            ("1", "ok", "on for training and prediction"),
            ("f", "ok", "switched off"),
            ("0", "ok", "switched off"),
            ("yes", "warning", "means off"),
        ],
    )
    def test_on_a_gpu_the_variable_decides(self, monkeypatch, value, status, says):
        if value is not None:
            monkeypatch.setenv("nnUNet_compile", value)
        check = diagnosis.check_compile(torch_facts(gpus=[gpu()]), [])
        assert check.status == status
        assert check.found.endswith(says) or says in check.found

    @pytest.mark.parametrize("value", [None, "t"])
    def test_without_a_compiler_it_is_a_problem_only_where_it_is_on(self, monkeypatch, value):
        if value is not None:
            monkeypatch.setenv("nnUNet_compile", value)
        check = diagnosis.check_compile(torch_facts(gpus=[gpu()]), ["a C compiler", "Python.h"])
        assert check.status == "problem"
        assert "without a C compiler and Python.h" in check.found
        monkeypatch.setenv("nnUNet_compile", "f")
        assert diagnosis.check_compile(torch_facts(gpus=[gpu()]), ["a C compiler"]).status == "ok"

    def test_on_a_cpu_nothing_is_compiled_or_needed(self, monkeypatch):
        monkeypatch.setenv("nnUNet_compile", "t")
        check = diagnosis.check_compile(torch_facts(), ["a C compiler"])
        assert check.status == "ok"
        assert "does not compile" in check.found

    def test_a_compiler_is_looked_for_where_cc_says_and_under_its_usual_names(self, monkeypatch):
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setattr(diagnosis.shutil, "which", lambda name: name == "clang-99" or None)
        assert "a C compiler" in diagnosis.missing_compile_tools()
        monkeypatch.setenv("CC", "clang-99 -O2")
        assert "a C compiler" not in diagnosis.missing_compile_tools()


class TestDataLoading:
    def test_a_value_that_nnunet_cannot_read_is_a_problem(self, monkeypatch):
        monkeypatch.setenv("nnUNet_n_proc_DA", "many")
        assert diagnosis.check_workers().status == "problem"

    @pytest.mark.parametrize("value", ["0", "12"])
    def test_a_number_is_fine(self, monkeypatch, value):
        monkeypatch.setenv("nnUNet_n_proc_DA", value)
        assert diagnosis.check_workers().status == "ok"

    @pytest.mark.parametrize(("usable", "status"), [(64, "ok"), (2, "warning")])
    def test_more_workers_than_usable_cores_are_a_warning(self, monkeypatch, usable, status):
        monkeypatch.setattr(diagnosis.os, "cpu_count", lambda: 64)
        monkeypatch.setattr(diagnosis, "_usable_cpus", lambda: usable)
        check = diagnosis.check_workers()
        assert check.status == status
        assert check.found == f"not set; nnU-Net takes 12 workers, {usable} CPU cores usable"

    def test_little_shared_memory_matters_where_there_are_workers(self, monkeypatch, tmp_path):
        monkeypatch.setattr(diagnosis.shutil, "disk_usage", lambda path: usage(GIB // 16))
        assert diagnosis.check_shared_memory(tmp_path).status == "warning"
        monkeypatch.setenv("nnUNet_n_proc_DA", "0")
        assert diagnosis.check_shared_memory(tmp_path).status == "ok"


class TestProbe:
    """Imports happen in another process, whatever they do there."""

    @pytest.fixture
    def module(self, tmp_path, monkeypatch):
        monkeypatch.syspath_prepend(str(tmp_path))

        def write(name, code):
            (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")

        return write

    def test_the_version_of_the_module_is_preferred_because_it_shows_the_build(self, module):
        module("fine_module", "__version__ = '1.2+cpu'")
        assert probe([], ["fine_module"]).packages == {"fine_module": Package("1.2+cpu")}

    @pytest.mark.parametrize(
        ("code", "says"),
        [
            ("raise RuntimeError('operator torchvision::nms\\ndoes not exist')", "nms does not exist"),
            ("import sys; sys.exit('wrong machine')", "SystemExit: wrong machine"),
            ("import surely_not_installed", "No module named 'surely_not_installed'"),
            ("def broken(:", "SyntaxError"),
        ],
    )
    def test_an_import_that_raises_is_a_finding_and_the_next_one_goes_on(self, module, code, says):
        module("bad_module", code)
        module("fine_module", "__version__ = '1'")
        packages = probe([], ["bad_module", "fine_module"]).packages
        assert says in packages["bad_module"].error
        assert packages["fine_module"] == Package("1")

    def test_an_import_that_ends_the_interpreter_is_named_with_what_was_not_reached(self, module):
        module("fine_module", "__version__ = '1'")
        module("fatal_module", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
        findings = probe([], ["fine_module", "fatal_module", "scipy"])
        assert findings.error == "importing fatal_module ended the interpreter (exit code -9)"
        assert findings.packages["fine_module"] == Package("1")
        assert findings.packages["fatal_module"] == Package(None, findings.error)
        assert findings.packages["scipy"] == Package(version("scipy"), findings.error)

    def test_an_import_that_hangs_is_given_up(self, module, monkeypatch):
        monkeypatch.setattr("nnunet_nas.probing._PROBE_SECONDS", 1.0)
        module("slow_module", "import time; time.sleep(60)")
        assert "importing slow_module took longer than 1 s" in probe([], ["slow_module"]).packages["slow_module"].error

    def test_what_a_package_prints_does_not_disturb(self, module):
        module("loud_module", "import os; print('welcome'); os.system('echo hello'); __version__ = '3'")
        assert probe([], ["loud_module"]).packages == {"loud_module": Package("3")}


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
        def fail(*_):
            raise ZeroDivisionError("oh")

        monkeypatch.setattr(diagnosis, "probe", lambda folders: Findings())
        monkeypatch.setattr(diagnosis, "check_workers", fail)
        assert main(["doctor", "--json"]) == 3
        rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["checks"]}
        assert rows["nnUNet_n_proc_DA"]["found"] == "could not be checked: ZeroDivisionError: oh"

    @pytest.mark.integration
    def test_this_machine_with_a_trainer_in_an_external_folder(self, tmp_path):
        code = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
class MyTrainer(nnUNetTrainer):
    pass
"""
        (tmp_path / "my_trainers.py").write_text(code, encoding="utf-8")
        folders = {name: str(tmp_path) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_extTrainer")}
        environment = {**os.environ, **folders}
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
            "found": f"{tmp_path}: MyTrainer",
            "mend": "",
        }
        for name in PACKAGES:
            assert rows[name]["found"].startswith(version(name))
        assert rows["torch and torchvision"]["status"] == "ok"
