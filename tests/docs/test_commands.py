"""Help is documentation: every command explains itself, shows an example that works, and is in the reference."""

from __future__ import annotations

import inspect
import itertools
import re
import shlex

import click

from gpulab.cli.main import COMMANDS


def test_the_reference_is_what_help_prints(reference):
    """A reader must be able to trust the page; regenerate it with `scripts/reference.py`."""
    written = reference.REFERENCE.read_text(encoding="utf-8")

    assert reference.reference() == written


def test_every_command_says_in_the_table_what_its_own_help_says(commands):
    """`gpulab --help` reads a table so that it imports nothing; a second wording would be a second truth."""
    own = {name: _summary(commands[f"gpulab {name}"]) for name in COMMANDS}

    assert {name: text for name, (_, text) in COMMANDS.items()} == own


def test_every_command_shows_an_example_of_itself(commands):
    """An example is what people copy; a group's commands have their own."""
    leaves = {name: c for name, c in commands.items() if not isinstance(c, click.Group)}

    without = [name for name, command in leaves.items() if not _examples(name, command)]

    assert [] == without


def test_every_example_is_accepted_by_its_command(commands):
    """A copied example that fails with "no such option" is worse than none."""
    wrong = []
    for name, command in commands.items():
        for example in _examples(name, command):
            wrong += refusals(example, commands)

    assert [] == wrong


def test_every_option_says_what_it_is_for(commands):
    """A flag without a word is a flag nobody dares to use."""
    silent = [
        f"{name} {parameter.opts[0]}"
        for name, command in commands.items()
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.hidden and not parameter.help
    ]

    assert [] == silent


def test_every_command_in_a_document_exists_with_its_options(commands, documents):
    """A tutorial that names a flag we renamed costs a student an evening."""
    wrong = [
        f"{path}: {problem}"
        for path, text in documents.items()
        if path != "docs/reference.md"
        for line in _command_lines(text)
        for problem in refusals(line, commands)
    ]

    assert [] == wrong


def refusals(line: str, commands: dict[str, click.Command]) -> list[str]:
    """Why click would not take this command line, looking at names only; empty when it would."""
    words = list(itertools.takewhile(_is_of_the_call, shlex.split(line, comments=True)))
    profile = words.index("--profile") if "--profile" in words else None
    if profile == 1:
        del words[profile : profile + 2]
    name = "gpulab"
    rest = words[1:]
    while rest and f"{name} {rest[0]}" in commands:
        name = f"{name} {rest.pop(0)}"
    command = commands[name]
    if isinstance(command, click.Group):
        odd = [w for w in rest if not re.fullmatch(r"-h|--help|--version|[A-Z]+|\.\.\.", w)]
        return [f"`{line}` names no command of `{name}`"] if odd else []
    options = {opt for p in command.params for opt in (*p.opts, *p.secondary_opts)}
    options |= {"--help", "-h"}
    own = rest[: rest.index("--")] if "--" in rest else rest
    given = [word.split("=")[0] for word in own if re.match(r"--?[A-Za-z]", word)]
    return [f"`{line}`: no option {word}" for word in given if word not in options]


def _is_of_the_call(word: str) -> bool:
    """Whether a word belongs to the first call of a line, not to what it is piped into or followed by."""
    return word not in ("|", ">", "&&", ";") and "…" not in word


def _summary(command: click.Command) -> str:
    return inspect.cleandoc(command.help or "").split("\n\n")[0].replace("\n", " ")


def _examples(name: str, command: click.Command) -> list[str]:
    """The lines of its help that call it, also inside another command, as in `eval "$(gpulab sandbox env)"`."""
    call = re.compile(rf"(?:^|[\s(\"|]){name}(?![\w-])[^\")|;]*")
    found = [call.search(line.strip()) for line in (command.help or "").splitlines()]
    return [match.group().lstrip(' ("|') for match in found if match]


def _command_lines(text: str) -> list[str]:
    """What a document tells its reader to type: in code blocks and between backticks."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.M | re.S)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    lines += re.findall(r"`(gpulab [^`]*)`", prose)
    return [line for line in lines if re.match(r"gpulab( |$)(?!\d)", line)]
