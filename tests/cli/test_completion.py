"""Completion scripts: bash is driven as readline drives it; zsh and fish are driven where they are installed."""

import argparse
import shutil
import subprocess

import pytest

from nnunet_nas.cli.completion import completion_script
from nnunet_nas.cli.main import COMMANDS, main


def toy_parser():
    """Every kind of argument that our commands have, with texts that a shell could trip over."""
    parser = argparse.ArgumentParser(prog="toy")
    parser.add_argument("--version", action="version", version="1")
    commands = parser.add_subparsers(dest="command")
    search = commands.add_parser("search", help="it's a [search]: $HOME `echo hi` 100%%")
    search.add_argument("-d", metavar="DATASET", help="data set: number or name")
    search.add_argument("-device", choices=("cuda", "cpu", "mps"), help="where it's computed (default: %(default)s)")
    search.add_argument("-cases", nargs="+", metavar="CASE", choices=("case_1", "case_2"), help="cases")
    search.add_argument("-out", metavar="FOLDER", help="folder\\file [of results]")
    search.add_argument("-n", type=int, help="number")
    search.add_argument("--json", action="store_true", help="print JSON")
    search.add_argument("--secret", action="store_true", help=argparse.SUPPRESS)
    paint = commands.add_parser("paint", help="draw")
    paint.add_argument("shape", choices=("circle", "square"))
    return parser


@pytest.fixture
def preprocessed(tmp_path, monkeypatch):
    """Two data sets in a folder with a space in its name."""
    folder = tmp_path / "pre processed"
    for name in ("Dataset004_Hippocampus", "Dataset027_ACDC", "notes"):
        (folder / name).mkdir(parents=True)
    (folder / "Dataset009_file.json").touch()
    monkeypatch.setenv("nnUNet_preprocessed", str(folder))
    return folder


def shell(name, script, cwd=None):
    """What a shell without the user's own settings prints when it runs a script."""
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    plain = {"bash": "--norc", "zsh": "-f", "fish": "--no-config"}[name]
    done = subprocess.run([name, plain, "-c", script], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout


def complete_in_bash(line, cwd=None):
    """What bash offers for the last word of `line` (an empty one after a space)."""
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    drive = f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _toy; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    output = shell("bash", f"{completion_script(toy_parser(), 'bash')}\n{drive}", cwd)
    return [word for word in output.splitlines() if word]


def complete_in_fish(line, cwd=None):
    output = shell("fish", f"{completion_script(toy_parser(), 'fish')}\ncomplete -C '{line}'", cwd)
    return [row.split("\t")[0] for row in output.splitlines()]


BOTH = pytest.mark.parametrize("complete", [complete_in_bash, complete_in_fish], ids=["bash", "fish"])


@BOTH
def test_the_first_word_is_a_command(complete):
    assert {"search", "paint"} <= set(complete("toy "))
    assert complete("toy se") == ["search"]


@BOTH
def test_options_of_the_command_and_of_no_other(complete):
    assert {"-device", "--json"} <= set(complete("toy search -"))
    assert "-device" not in complete("toy paint -")
    assert complete("toy search --j") == ["--json"]


@BOTH
def test_a_hidden_option_stays_hidden(complete):
    assert complete("toy search --sec") == []


@BOTH
def test_choices_of_an_option_and_of_a_positional_argument(complete):
    assert sorted(complete("toy search -device ")) == ["cpu", "cuda", "mps"]
    assert sorted(complete("toy search -device c")) == ["cpu", "cuda"]
    assert {"circle", "square"} <= set(complete("toy paint "))


@BOTH
def test_data_sets_are_folders_in_nnunet_preprocessed(complete, preprocessed):
    assert complete("toy search -d ") == ["Dataset004_Hippocampus", "Dataset027_ACDC"]
    assert complete("toy search --json -d Dataset02") == ["Dataset027_ACDC"]


@BOTH
@pytest.mark.parametrize("value", [None, "", "/no/such/folder"])
def test_without_preprocessed_data_nothing_is_offered(complete, monkeypatch, value):
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    if value is not None:
        monkeypatch.setenv("nnUNet_preprocessed", value)
    assert complete("toy search -d ") == []


@BOTH
def test_folders_and_files_where_an_option_takes_one(complete, tmp_path):
    (tmp_path / "results").mkdir()
    assert [word.rstrip("/") for word in complete("toy search -out res", tmp_path)] == ["results"]


@BOTH
def test_a_number_is_not_guessed(complete, tmp_path):
    (tmp_path / "5").touch()
    assert complete("toy search -n ", tmp_path) == []


def test_bash_offers_options_again_after_an_option_has_its_value(preprocessed):
    assert "--json" in complete_in_bash("toy search -d Dataset027_ACDC ")


def test_bash_completes_every_value_of_an_option_that_takes_several():
    assert complete_in_bash("toy search -cases case_1 ") == ["case_1", "case_2"]
    assert "--json" in complete_in_bash("toy search -cases case_1 -")


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_the_script_is_valid_for_its_shell(name, tmp_path):
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    script = tmp_path / "script"
    script.write_text(completion_script(toy_parser(), name), encoding="utf-8")
    done = subprocess.run([name, "-n", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_texts_are_not_executed_by_the_shell(name):
    script = completion_script(toy_parser(), name)
    assert "hi" not in shell(name, {"zsh": "compdef() { : }\n"}.get(name, "") + script).split()


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_the_command_prints_a_script_with_all_our_commands(name, capsys):
    assert main(["completion", name]) == 0
    script = capsys.readouterr().out
    assert all(command in script for command in COMMANDS)
    assert "python" not in script.lower()


def test_our_own_script_completes_the_commands(capsys):
    assert main(["completion", "bash"]) == 0
    drive = 'COMP_WORDS=(nnunet_nas doc); COMP_CWORD=1; _nnunet_nas; echo "${COMPREPLY[@]}"'
    assert shell("bash", f"{capsys.readouterr().out}\n{drive}") == "doctor\n"
