"""Exit codes, one-line errors and the start-up time of the command line, whatever the command."""

import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

from nnunet_nas import __version__
from nnunet_nas.cli import main as dispatcher
from nnunet_nas.cli.main import COMMANDS, main
from nnunet_nas.errors import BudgetProblem, DataProblem, EnvironmentProblem, UsageError

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "nnunetv2", "matplotlib", "numpy", "scipy")


@pytest.fixture
def command(monkeypatch):
    """Makes `nnunet_nas fake` call a given function."""

    def install(run):
        module = types.ModuleType("nnunet_nas.cli.fake", "A command for tests.")
        module.SUMMARY = "for tests"
        module.add_arguments = lambda parser: None
        module.run = run
        monkeypatch.setitem(sys.modules, "nnunet_nas.cli.fake", module)
        monkeypatch.setattr(dispatcher, "COMMANDS", ("fake",))

    return install


def raising(error):
    def run(args):
        raise error

    return run


def nnunet_nas(*arguments, **settings):
    command = [sys.executable, "-m", "nnunet_nas.cli.main", *arguments]
    return subprocess.run(command, cwd=ROOT, text=True, check=False, **settings)


@pytest.mark.parametrize(("returned", "code"), [(0, 0), (None, 0), (3, 3)])
def test_what_a_command_returns_is_the_exit_code(command, returned, code):
    command(lambda args: returned)
    assert main(["fake"]) == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("-n 0 is too small: give 1 or more"), 2),
        (EnvironmentProblem("nnUNet_raw is not set: export it"), 3),
        (DataProblem("configuration 3d is not in the plans; choose one of: 2d"), 4),
        (BudgetProblem("the smallest network has 9000 parameters: raise -max_params"), 5),
    ],
)
def test_an_error_of_the_user_is_one_line_with_its_own_exit_code(command, capfd, error, code):
    command(raising(error))
    assert main(["fake"]) == code
    output = capfd.readouterr()
    assert output.out == ""
    assert output.err == f"nnunet_nas fake: {error}\n"


def test_an_unexpected_error_is_one_line_and_exit_code_1(command, capfd):
    command(raising(RuntimeError("shapes differ:\n  (3, 4)\n  (3, 5)")))
    assert main(["fake"]) == 1
    line = "nnunet_nas fake: unexpected RuntimeError: shapes differ: (3, 4) (3, 5) (--verbose shows where)\n"
    assert capfd.readouterr().err == line


@pytest.mark.parametrize(("error", "code"), [(RuntimeError("shapes differ"), 1), (DataProblem("no plans"), 4)])
def test_verbose_adds_the_traceback_and_changes_nothing_else(command, capfd, error, code):
    command(raising(error))
    assert main(["fake", "--verbose"]) == code
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert any("test_main.py" in line for line in lines)
    assert lines[-1].endswith(str(error))


@pytest.mark.parametrize(
    ("interrupt", "line"),
    [(KeyboardInterrupt(), "interrupted\n"), (KeyboardInterrupt("3 of 8 scored"), "interrupted: 3 of 8 scored\n")],
)
def test_ctrl_c_is_exit_code_130_and_one_line(command, capfd, interrupt, line):
    command(raising(interrupt))
    assert main(["fake"]) == 130
    assert capfd.readouterr().err == line


def test_ctrl_c_in_a_terminal_is_exit_code_130():
    code = """
import signal, sys, time, types
from nnunet_nas.cli import main
# As from a terminal: what a shell runs in the background starts with SIGINT ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
def run(args):
    print("working", flush=True)
    time.sleep(60)
module = types.ModuleType("nnunet_nas.cli.fake")
module.SUMMARY, module.add_arguments, module.run = "", lambda parser: None, run
sys.modules["nnunet_nas.cli.fake"] = module
main.COMMANDS = ("fake",)
sys.exit(main.main(["fake"]))
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "working\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (130, "interrupted\n")


@pytest.mark.parametrize("arguments", [[], ["no_such_command"], ["ls", "--no_such_option"], ["completion", "csh"]])
def test_a_wrong_call_is_exit_code_2_and_names_what_is_wrong(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert (arguments[-1] if arguments else "COMMAND") in output.err.splitlines()[-1]


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    first_words = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("    ")]
    assert set(COMMANDS) <= set(first_words)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_says_what_it_does_and_shows_a_call(capsys, name):
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    # Once in the usage line, and at least once as an example.
    assert text.split("options:")[0].count(f"nnunet_nas {name}") >= 2
    assert "--verbose" in text


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"nnunet_nas {__version__}\n"


@pytest.mark.parametrize("call", ["--help", "--version", "ls", "ls --json", "completion bash", "select_tiny --help"])
def test_answers_without_heavy_imports(tmp_path, call):
    # Half a second is the promise; torch alone takes longer, so the promise is kept or broken by what is imported.
    code = f"""
import sys
from nnunet_nas.cli.main import main
try:
    main({call.split()!r})
except SystemExit:
    pass
print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)
"""
    environment = {**os.environ, "nnUNet_preprocessed": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["ls"]])
def test_a_reader_that_went_away_is_no_error(tmp_path, arguments, unbuffered):
    (tmp_path / "Dataset001_Empty").mkdir()
    environment = {**os.environ, "nnUNet_preprocessed": str(tmp_path), "PYTHONUNBUFFERED": unbuffered}
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = nnunet_nas(*arguments, stdout=writer, stderr=subprocess.PIPE, env=environment)
    finally:
        os.close(writer)
    assert done.returncode == 0
    assert "Error" not in done.stderr


def test_a_pipe_to_a_worker_that_broke_is_an_error(command, capfd):
    command(raising(BrokenPipeError("worker died")))
    assert main(["fake"]) == 1
    assert "unexpected BrokenPipeError: worker died" in capfd.readouterr().err
