"""Prints a completion script for bash, zsh or fish.

It completes commands, options, their choices, and after -d the data sets in $nnUNet_preprocessed, all within the shell:
no Python is started while you type. Print it again after an update of nnunet_nas.

examples:
  nnunet_nas completion bash >> ~/.bashrc
  nnunet_nas completion zsh > "${fpath[1]}/_nnunet_nas"
  nnunet_nas completion fish > ~/.config/fish/completions/nnunet_nas.fish
"""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass
from pathlib import Path

SUMMARY = "print a completion script for your shell"

_FILE_METAVARS = ("FILE", "FOLDER", "PATH")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The argument of `completion`."""
    parser.add_argument("shell", choices=sorted(_WRITERS), help="the shell that you use")


def run(args: argparse.Namespace) -> int:
    """Prints the script."""
    # Late, because main imports this module to build the parser.
    from nnunet_nas.cli.main import build_parser

    print(completion_script(build_parser(), args.shell))
    return 0


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script that completes calls of `parser`, a parser with subcommands.

    Args:
        parser: the parser of the whole command line.
        shell: `bash`, `zsh` or `fish`.
    """
    return _WRITERS[shell](parser.prog, _arguments(parser), _commands(parser))


@dataclass(frozen=True)
class _Argument:
    """An option (or, without `flags`, a positional argument) as far as completion is concerned."""

    flags: tuple[str, ...]
    summary: str
    takes_value: bool
    takes_several: bool
    choices: tuple[str, ...]
    metavar: str

    @property
    def is_dataset(self) -> bool:
        return self.metavar == "DATASET"

    @property
    def is_file(self) -> bool:
        return self.metavar in _FILE_METAVARS


@dataclass(frozen=True)
class _Command:
    name: str
    summary: str
    arguments: tuple[_Argument, ...]

    @property
    def options(self) -> tuple[_Argument, ...]:
        return tuple(argument for argument in self.arguments if argument.flags)

    @property
    def positional_choices(self) -> tuple[str, ...]:
        return tuple(choice for argument in self.arguments if not argument.flags for choice in argument.choices)


def _commands(parser: argparse.ArgumentParser) -> list[_Command]:
    commands = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, subparser in action.choices.items():
                commands.append(_Command(name, summaries.get(name, ""), _arguments(subparser)))
    return commands


def _arguments(parser: argparse.ArgumentParser) -> tuple[_Argument, ...]:
    formatter = parser._get_formatter()
    arguments = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) or action.help == argparse.SUPPRESS:
            continue
        summary = formatter._expand_help(action) if action.help else ""
        # A folder or file is recognised by its type where the help shows no telling metavar.
        metavar = "PATH" if action.type is Path else str(action.metavar or action.dest)
        arguments.append(
            _Argument(
                flags=tuple(action.option_strings),
                summary=summary,
                takes_value=action.nargs != 0,
                takes_several=action.nargs not in (None, 0, 1, "?"),
                choices=tuple(str(choice) for choice in action.choices or ()),
                metavar=metavar,
            )
        )
    return tuple(arguments)


_BASH = """\
# Completion of {prog} for bash, printed by `{prog} completion bash`.
_{prog}_datasets() {{
    [ -n "${{nnUNet_preprocessed:-}}" ] || return 0
    local folder
    for folder in "$nnUNet_preprocessed"/Dataset*_*/; do
        [ -d "$folder" ] && basename "$folder"
    done
}}

_{prog}() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" command="${{COMP_WORDS[1]:-}}" words option="" distance
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W {words} -- "$current"))
        return
    fi
    # The nearest option before the cursor, and how many words before: some options take several values.
    for ((distance = 1; distance < COMP_CWORD - 1; distance++)); do
        case "${{COMP_WORDS[COMP_CWORD - distance]}}" in
            -*) option="${{COMP_WORDS[COMP_CWORD - distance]}}"; break ;;
        esac
    done
    case "$current" in -*) option="" ;; esac
    case "$command $option $distance" in
{values}
    esac
    case "$command" in
{options}
        *) return ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -F _{prog} {prog}"""


def _bash(prog: str, arguments: tuple[_Argument, ...], commands: list[_Command]) -> str:
    values, options = [], []
    for command in commands:
        for option in command.options:
            if option.takes_value:
                reach = "*" if option.takes_several else "1"
                patterns = " | ".join(f'"{command.name} {flag} "{reach}' for flag in option.flags)
                values.append(f"        {patterns}) {_bash_value(prog, option)}; return ;;")
        flags = [flag for option in command.options for flag in option.flags]
        words = shlex.quote(" ".join([*command.positional_choices, *flags]))
        options.append(f"        {command.name}) words={words} ;;")
    names = [command.name for command in commands] + [flag for option in arguments for flag in option.flags]
    return _BASH.format(
        prog=prog, words=shlex.quote(" ".join(names)), values="\n".join(values), options="\n".join(options)
    )


def _bash_value(prog: str, option: _Argument) -> str:
    if option.choices:
        return f'COMPREPLY=($(compgen -W {shlex.quote(" ".join(option.choices))} -- "$current"))'
    if option.is_dataset:
        return f'COMPREPLY=($(compgen -W "$(_{prog}_datasets)" -- "$current"))'
    if option.is_file:
        return 'compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -f -- "$current"))'
    return "true"


_ZSH = """\
#compdef {prog}
# Completion of {prog} for zsh, printed by `{prog} completion zsh`.
_{prog}_datasets() {{
    local -a names
    [[ -n "${{nnUNet_preprocessed:-}}" ]] && names=("$nnUNet_preprocessed"/Dataset*_*(N-/:t))
    compadd -a names
}}

_{prog}() {{
    local context state state_descr line
    local -A opt_args
    _arguments -C \\
{top} \\
        '1:command:->command' '*::argument:->argument'
    case "$state" in
        command)
            local -a commands
            commands=(
{names}
            )
            _describe command commands
            ;;
        argument)
            case "$words[1]" in
{cases}
            esac
            ;;
    esac
}}

if [ "$funcstack[1]" = "_{prog}" ]; then
    _{prog} "$@"
else
    compdef _{prog} {prog}
fi"""


_ZSH_CASE = """\
                {name})
                    _arguments \\
{specs}
                    ;;"""


def _zsh(prog: str, arguments: tuple[_Argument, ...], commands: list[_Command]) -> str:
    top = " \\\n".join(f"        {spec}" for option in arguments for spec in _zsh_specs(prog, option))
    names = "\n".join(
        f"                {shlex.quote(command.name + ':' + _zsh_text(command.summary))}" for command in commands
    )
    cases = []
    for command in commands:
        specs = [spec for argument in command.arguments for spec in _zsh_specs(prog, argument)]
        if any(option.takes_several for option in command.options):
            # The second and later values stand where _arguments expects none and would give up.
            specs.append("'*:value: '")
        joined = " \\\n".join(f"                    {spec}" for spec in specs)
        cases.append(_ZSH_CASE.format(name=command.name, specs=joined))
    return _ZSH.format(prog=prog, top=top, names=names, cases="\n".join(cases))


def _zsh_specs(prog: str, argument: _Argument) -> list[str]:
    """The argument as words for `_arguments`, one per spelling."""
    value = ""
    if argument.takes_value:
        value = f":{_zsh_text(argument.metavar)}:{_zsh_action(prog, argument)}"
    if not argument.flags:
        return [shlex.quote(value)]
    return [shlex.quote(f"{flag}[{_zsh_text(argument.summary)}]{value}") for flag in argument.flags]


def _zsh_action(prog: str, argument: _Argument) -> str:
    if argument.choices:
        return f"({' '.join(argument.choices)})"
    if argument.is_dataset:
        return f"_{prog}_datasets"
    return "_files" if argument.is_file else " "


def _zsh_text(text: str) -> str:
    """Text with what means something to `_arguments` taken out of it."""
    return text.translate(str.maketrans("[]:\n\\", "(), /"))


_FISH = """\
# Completion of {prog} for fish, printed by `{prog} completion fish`.
function __{prog}_datasets
    test -n "$nnUNet_preprocessed"; or return
    for folder in $nnUNet_preprocessed/Dataset*_*/
        basename $folder
    end
end

complete -c {prog} -f
{lines}"""


def _fish(prog: str, arguments: tuple[_Argument, ...], commands: list[_Command]) -> str:
    lines = [_fish_option(prog, option, "__fish_use_subcommand") for option in arguments]
    for command in commands:
        summary = _fish_quote(command.summary)
        lines.append(f"complete -c {prog} -n __fish_use_subcommand -a {command.name} -d {summary}")
        condition = _fish_quote(f"__fish_seen_subcommand_from {command.name}")
        lines += [_fish_option(prog, option, condition) for option in command.options]
        if command.positional_choices:
            choices = _fish_quote(" ".join(command.positional_choices))
            lines.append(f"complete -c {prog} -n {condition} -a {choices}")
    return _FISH.format(prog=prog, lines="\n".join(lines))


def _fish_option(prog: str, option: _Argument, condition: str) -> str:
    words = [f"complete -c {prog} -n {condition}"]
    for flag in option.flags:
        # fish tells -d, -device (old style) and --json apart.
        kind = "-l" if flag.startswith("--") else "-s" if len(flag) == 2 else "-o"
        words.append(f"{kind} {flag.lstrip('-')}")
    if option.choices:
        words.append(f"-x -a {_fish_quote(' '.join(option.choices))}")
    elif option.is_dataset:
        words.append(f"-x -a '(__{prog}_datasets)'")
    elif option.takes_value:
        words.append("-r -F" if option.is_file else "-x")
    return " ".join([*words, f"-d {_fish_quote(option.summary)}"])


def _fish_quote(text: str) -> str:
    """Single quotes; fish knows backslash escapes within them."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", " ")
    return f"'{escaped}'"


_WRITERS = {"bash": _bash, "fish": _fish, "zsh": _zsh}
