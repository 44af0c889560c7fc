"""`unplugctl completion`: bash, zsh and fish, made from the parser, so that a new option needs nothing here.

The completions of DOMAIN come from the daemon at the time of completion (`unplugctl completion domains`). Names that a
shell could misread are left out.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from unplugd.core.registry import PUBLIC
from unplugd.ctl.failure import OK, Failure

if TYPE_CHECKING:
    from argparse import Namespace

_HARMLESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass
class Option:
    """An option of a command."""

    names: list[str]
    help: str
    takes: str = ""
    """What it takes: "" nothing, "file", "words" (see `words`) or "any"."""
    words: list[str] = field(default_factory=list)


@dataclass
class Command:
    """One command of the tree; `path` are the words of the command line."""

    path: tuple[str, ...]
    help: str
    options: list[Option]
    commands: list[tuple[str, str]]
    """Names and helps of the commands below it."""
    words: list[str]
    """Words that its arguments may be."""
    domains: bool
    """Whether its arguments are domains."""


def tree(parser: argparse.ArgumentParser, path: tuple[str, ...] = (), help: str = "") -> Iterator[Command]:
    """The commands of a parser, the outer first."""
    options, below, words, domains = [], [], [], False
    children: list[tuple[str, str, argparse.ArgumentParser]] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            children = [(name, helps.get(name, ""), child) for name, child in action.choices.items()]
            below = [(name, text) for name, text, _ in children]
        elif action.option_strings:
            options.append(_option(action))
        else:
            complete = getattr(action, "complete", "")
            domains = domains or complete == "domain"
            words += list(PUBLIC) if complete == "product" else [str(choice) for choice in action.choices or ()]
    yield Command(path, help, options, below, words, domains)
    for name, text, child in children:
        yield from tree(child, (*path, name), text)


def _option(action: argparse.Action) -> Option:
    takes = ""
    if action.nargs != 0:
        takes = "words" if action.choices else getattr(action, "complete", "any")
    return Option(list(action.option_strings), action.help or "", takes, [str(word) for word in action.choices or ()])


def print_script(options: Namespace) -> int:
    """`unplugctl completion SHELL`."""
    from unplugd.ctl.cli import parser

    if options.shell == "domains":
        print("\n".join(domains(options.socket)))
        return OK
    print({"bash": bash, "zsh": zsh, "fish": fish}[options.shell](list(tree(parser()))), end="")
    return OK


def domains(socket: str) -> list[str]:
    """What may be typed for a DOMAIN now; nothing where unplugd does not run."""
    from unplugd.ctl.control import Control

    try:
        found = Control(socket).domains()
    except Failure:
        return []
    return [domain["name"] if _HARMLESS.fullmatch(domain["name"]) else str(domain["domid"]) for domain in found]


def _valued(commands: list[Command]) -> list[str]:
    return sorted({name for command in commands for option in command.options if option.takes
                   for name in option.names})


def bash(commands: list[Command]) -> str:
    """The completion for bash."""
    paths = [" ".join(command.path) for command in commands if command.path]
    lines = [
        "# bash completion of unplugctl; made by `unplugctl completion bash`",
        "_unplugctl() {",
        "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} path= word i skip=",
        "    COMPREPLY=()",
        "    for ((i = 1; i < COMP_CWORD; i++)); do",
        "        word=${COMP_WORDS[i]}",
        "        if [ -n \"$skip\" ]; then skip=; continue; fi",
        f"        case $word in {'|'.join(_valued(commands))}) skip=1; continue ;; -*) continue ;; esac",
        (f"        case \"${{path:+$path }}$word\" in {'|'.join(_quoted(path) for path in paths)})"
        " path=\"${path:+$path }$word\" ;; esac"),
        "    done",
        "    case $prev in",
    ]
    done: set[str] = set()
    for command in commands:
        for option in command.options:
            names = [name for name in option.names if name not in done]
            if not option.takes or not names:
                continue
            done.update(names)
            reply = {"words": f'COMPREPLY=($(compgen -W "{" ".join(option.words)}" -- "$cur"))',
                     "file": 'COMPREPLY=($(compgen -f -- "$cur"))'}.get(option.takes, ":")
            lines.append(f"        {'|'.join(names)}) {reply}; return ;;")
    lines += ["    esac", "    local words= domains=", "    case $path in"]
    for command in commands:
        words = [name for name, _ in command.commands] + command.words
        options = [name for option in command.options for name in option.names]
        lines.append(f"        {_quoted(' '.join(command.path))}) words=\"{' '.join(words)}\""
                     f" domains={'1' if command.domains else ''}")
        lines.append(f"            [[ $cur == -* ]] && words=\"{' '.join(options)}\" domains= ;;")
    lines += [
        "    esac",
        "    [ -z \"$domains\" ] || words+=\" $(unplugctl completion domains 2>/dev/null)\"",
        "    COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))",
        "}",
        "complete -F _unplugctl unplugctl",
    ]
    return "\n".join(lines) + "\n"


def zsh(commands: list[Command]) -> str:
    """The completion for zsh, as a file `_unplugctl` in its fpath."""
    lines = ["#compdef unplugctl", "# zsh completion of unplugctl; made by `unplugctl completion zsh`", ""]
    for command in commands:
        lines += [f"{_function(command.path)}() {{"]
        arguments = []
        for option in command.options:
            told = _zsh_text(option.help)
            value = {"": "", "file": ":file:_files", "words": f":value:({' '.join(option.words)})"}.get(
                option.takes, ":value: ")
            excluded = " ".join(option.names)
            arguments += [f"'({excluded}){name}[{told}]{value}'" for name in option.names]
        if command.commands:
            arguments += ["'1: :->command'", "'*:: :->arguments'"]
        elif command.domains:
            arguments.append("'*:domain:($(unplugctl completion domains 2>/dev/null))'")
        elif command.words:
            arguments += [f"'1: :({' '.join(command.words)})'", "'*: :'"]
        body = " \\\n        ".join(arguments)
        if not command.commands:
            lines += [f"    _arguments -s \\\n        {body}", "}", ""]
            continue
        described = "\n            ".join(f"'{name}:{_zsh_text(text)}'" for name, text in command.commands)
        calls = "\n            ".join(f"{name}) {_function((*command.path, name))} ;;" for name, _ in command.commands)
        lines += [
            "    local curcontext=$curcontext state line",
            f"    _arguments -C \\\n        {body}",
            "    case $state in",
            "        command)",
            f"            local -a commands=(\n            {described}\n            )",
            "            _describe command commands ;;",
            "        arguments)",
            f"            case $line[1] in\n            {calls}\n            esac ;;",
            "    esac",
            "}",
            "",
        ]
    lines += ['if [ "$funcstack[1]" = _unplugctl ]; then', '    _unplugctl "$@"', "else",
              "    compdef _unplugctl unplugctl", "fi"]
    return "\n".join(lines) + "\n"


def fish(commands: list[Command]) -> str:
    """The completion for fish."""
    lines = ["# fish completion of unplugctl; made by `unplugctl completion fish`", "complete -c unplugctl -f"]
    for command in commands:
        here = _fish_condition(command)
        complete = f"complete -c unplugctl -n '{here}'"
        lines += [f"{complete} -a {name} -d {_fish_text(text)}" for name, text in command.commands]
        lines += [f"{complete} -a {_fish_text(' '.join(command.words))}"] if command.words else []
        if command.domains:
            lines.append(f"{complete} -a '(unplugctl completion domains 2>/dev/null)'")
        for option in command.options:
            names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)
            value = {"": "", "file": " -r -F", "words": f" -x -a {_fish_text(' '.join(option.words))}"}.get(
                option.takes, " -x")
            lines.append(f"{complete} {names}{value} -d {_fish_text(option.help)}")
    return "\n".join(lines) + "\n"


def _fish_condition(command: Command) -> str:
    if not command.path:
        return "__fish_use_subcommand"
    conditions = [f"__fish_seen_subcommand_from {name}" for name in command.path]
    if command.commands:
        conditions.append(f"not __fish_seen_subcommand_from {' '.join(name for name, _ in command.commands)}")
    return "; and ".join(conditions)


def _function(path: tuple[str, ...]) -> str:
    return "_".join(["_unplugctl", *path])


def _quoted(text: str) -> str:
    return f'"{text}"'


def _zsh_text(text: str) -> str:
    return re.sub(r"([\[\]:\\])", r"\\\1", text).replace("'", "'\\''").replace("`", "")


def _fish_text(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
