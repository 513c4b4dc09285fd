"""Completion scripts, driven in a real bash as readline drives them; zsh and fish where they are installed."""

import shlex
import shutil
import subprocess

import pytest

from nnunet_nas.cli.main import COMMANDS, main

PLAIN = {"bash": "--norc", "zsh": "-f", "fish": "--no-config", "tcsh": "-f"}


@pytest.fixture
def script(capsys):
    """The script that the command prints for a shell."""

    def printed(shell):
        assert main(["completion", shell]) == 0
        return capsys.readouterr().out

    return printed


@pytest.fixture
def preprocessed(tmp_path, monkeypatch):
    """A working folder, and two data sets in a folder with a space in its name, beside what is none."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "pre processed"
    for name in ("Dataset004_Hippocampus", "Dataset027_ACDC", "notes"):
        (folder / name).mkdir(parents=True)
    (folder / "Dataset009_file.json").touch()
    monkeypatch.setenv("nnUNet_preprocessed", str(folder))
    return folder


def run_in(shell, code):
    """What a shell without the user's own settings prints."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([shell, PLAIN[shell], "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def complete_in_bash(script, line):
    """What bash offers for the last word of `line` (an empty one after a space)."""
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    drive = (
        f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _shtab_nnunet_nas; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    return [word for word in run_in("bash", f"{script('bash')}\n{drive}") if word]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("nnunet_nas do", ["doctor"]),
        ("nnunet_nas ls --j", ["--json"]),
        ("nnunet_nas doctor -d", []),
        ("nnunet_nas select_tiny -device c", ["cuda", "cpu"]),
        ("nnunet_nas completion z", ["zsh"]),
        ("nnunet_nas ls -d ", ["Dataset004_Hippocampus", "Dataset027_ACDC"]),
        ("nnunet_nas ls --json -d Dataset02", ["Dataset027_ACDC"]),
        ("nnunet_nas compare -d Dataset027_ACDC Dataset00", ["Dataset004_Hippocampus"]),
        ("nnunet_nas ls -d Dataset027_ACDC --j", ["--json"]),
        ("nnunet_nas compare -ref pre", ["pre processed"]),
    ],
)
def test_what_bash_offers(script, preprocessed, line, offered):
    assert complete_in_bash(script, line) == offered


@pytest.mark.parametrize("value", [None, "", "/no/such/folder"])
def test_without_preprocessed_data_nothing_is_offered(script, monkeypatch, value):
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    if value is not None:
        monkeypatch.setenv("nnUNet_preprocessed", value)
    assert complete_in_bash(script, "nnunet_nas ls -d ") == []


DRIVES = {
    "bash": "COMP_WORDS=(nnunet_nas ls -d ''); COMP_CWORD=3; _shtab_nnunet_nas; printf '%s\\n' \"${COMPREPLY[@]}\"",
    "zsh": "compadd() { print -l $names }; _nnunet_nas_datasets",
    "fish": "_nnunet_nas_datasets; true",
}


@pytest.mark.parametrize("shell", DRIVES)
def test_a_folder_name_is_neither_executed_nor_offered_where_a_shell_could_execute_it(script, preprocessed, shell):
    for name in ("$(touch${IFS}executed)", "`touch${IFS}executed`", "a;touch executed", "two words", "star*", "'"):
        (preprocessed / f"Dataset777_{name}").mkdir()
    code = script(shell)
    if shell == "zsh":
        code = f"compdef() {{ : }}\neval {shlex.quote(code)}"
    offered = run_in(shell, f"{code}\n{DRIVES[shell]}")
    assert [name for name in offered if name] == ["Dataset004_Hippocampus", "Dataset027_ACDC"]
    assert not (preprocessed.parent / "executed").exists()


@pytest.mark.parametrize("shell", PLAIN)
def test_each_script_is_valid_and_knows_all_commands(script, tmp_path, shell):
    text = script(shell)
    assert all(command in text for command in COMMANDS)
    (tmp_path / "script").write_text(text, encoding="utf-8")
    if shutil.which(shell):
        done = subprocess.run([shell, "-n", str(tmp_path / "script")], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_options_of_one_dash_and_several_letters_are_told_to_fish_as_such(script):
    assert " -o device " in script("fish")
    assert " -s d " in script("fish")
    assert " -s device " not in script("fish")
