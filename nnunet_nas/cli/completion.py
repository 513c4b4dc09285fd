"""Prints a completion script for bash, zsh, fish or tcsh.

It completes commands, options, their choices, files, and after -d the data sets in $nnUNet_preprocessed, all within the
shell: no Python is started while you type. Print it again after an update of nnunet_nas. tcsh cannot tell the commands'
options apart and knows no data sets.

examples:
  nnunet_nas completion bash >> ~/.bashrc
  nnunet_nas completion zsh > "${fpath[1]}/_nnunet_nas"
  nnunet_nas completion fish > ~/.config/fish/completions/nnunet_nas.fish
  nnunet_nas completion tcsh >> ~/.tcshrc
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

SUMMARY = "print a completion script for your shell"

# Folder names are what others wrote: each stays one word, and one with a character that could mean something to a shell
# is not offered, because what is offered ends on a command line.
_PREAMBLES = {
    "bash": """\
_nnunet_nas_datasets() {
    local folder name
    for folder in "${nnUNet_preprocessed:-/nonexistent}"/Dataset[0-9]*_*/; do
        name="${folder%/}"
        name="${name##*/}"
        if [[ -d "$folder" && "$name" == "$1"* && "$name" != *[!A-Za-z0-9_.+-]* ]]; then
            printf '%s\\n' "$name"
        fi
    done
}""",
    "zsh": """\
_nnunet_nas_datasets() {
    local -a names
    names=("${nnUNet_preprocessed:-/nonexistent}"/Dataset[0-9]*_*(N-/:t))
    names=(${names:#*[^A-Za-z0-9_.+-]*})
    compadd -a names
}""",
    "fish": """\
function _nnunet_nas_datasets
    for folder in $nnUNet_preprocessed/Dataset*_*/
        set -l name (string replace -r '.*/([^/]+)/$' '$1' -- $folder)
        string match -r '^Dataset[0-9]+_[A-Za-z0-9_.+-]+$' -- $name
    end
end""",
}
_DATASETS = {"bash": "_nnunet_nas_datasets", "zsh": "_nnunet_nas_datasets", "fish": "(_nnunet_nas_datasets)"}


class CompletedParser(argparse.ArgumentParser):
    """A parser whose arguments tell shtab what they take: data sets and files are recognised by metavar and type."""

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """As argparse's, noting what completes the value under `complete`, where shtab looks."""
        action = super().add_argument(*names, **options)
        if action.metavar == "DATASET":
            vars(action)["complete"] = _DATASETS
        elif action.type is Path:
            vars(action)["complete"] = "file"
        return action


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The argument of `completion`."""
    parser.add_argument("shell", choices=("bash", "fish", "tcsh", "zsh"), help="the shell that you use")


def run(args: argparse.Namespace) -> int:
    """Prints the script."""
    # Late, because main imports this module to build the parser.
    import shtab

    from nnunet_nas.cli.main import build_parser

    script = shtab.complete(build_parser(), args.shell, preamble=_PREAMBLES.get(args.shell, ""))
    if args.shell == "fish":
        # nnU-Net's long options with one dash are "old style" to fish, which takes a single letter after -s.
        script = re.sub(r"(?<= )-s (?=\w\w)", "-o ", script)
    print(script)
    return 0
