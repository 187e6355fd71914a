"""What the nouns of the command line share."""

import importlib
import shlex

import pytest
import typer
from typer.main import get_command

from eastwest.cli.main import COMMANDS
from eastwest.cli.main import app as everything
from eastwest.cli.options import counted, start_logging, utc
from eastwest.errors import InvalidInput


@pytest.mark.parametrize("level", ["loud", "", "INFO", "critical"])
def test_a_log_level_that_is_none_is_named_with_those_that_are(level):
    with pytest.raises(InvalidInput, match="debug, info, warning, error"):
        start_logging(level)


def every_option(noun):
    module, attribute = COMMANDS[noun]
    target = getattr(importlib.import_module(module), attribute)
    if not isinstance(target, typer.Typer):
        single = typer.Typer(add_completion=False)
        single.command(noun)(target)
        target = single
    return list(options_of(get_command(target), ""))


def options_of(command, name):
    if not hasattr(command, "commands"):
        yield from ((name, parameter) for parameter in command.params)
    for verb, below in getattr(command, "commands", {}).items():
        yield from options_of(below, f"{name} {verb}".strip())


@pytest.mark.parametrize("noun", COMMANDS)
def test_an_administrator_by_group_who_cannot_list_the_directory_may_name_it(noun):
    """`DIR` has mode 0711 where ``admin_socket_group`` is set."""
    for verb, option in every_option(noun):
        if "--data" in option.opts and noun != "demo":
            assert not option.type_descriptor.parameter_info.readable, f"{noun} {verb}"


@pytest.mark.parametrize("noun", COMMANDS)
def test_every_option_says_what_it_is_for(noun):
    options = every_option(noun)
    assert options
    for verb, option in options:
        assert option.help, f"{noun} {verb} {option.name}"
        assert "[" not in option.help, f"{noun} {verb} {option.name}: rich takes brackets for markup and drops them"


@pytest.mark.parametrize(("number", "told"), [(0, "0 entries"), (1, "1 entry"), (2, "2 entries")])
def test_a_number_and_its_noun_agree(number, told):
    assert counted(number, "entry", "entries") == told


@pytest.mark.parametrize(("moment", "told"), [(0, None), (1_795_334_400, "2026-11-22T08:00:00Z")])
def test_a_moment_has_one_form(moment, told):
    assert utc(moment) == told


TYPED_FIRST = [
    "server init",
    "server run",
    "agent run",
    "token create",
    "entry create",
    "entry explain",
    "ca show",
    "ca prepare",
    "ca activate",
    "federation create",
    "certificate revoke",
    "plan",
    "apply",
    "log verify",
]


@pytest.mark.parametrize("typed", TYPED_FIRST)
def test_the_commands_that_people_type_first_have_examples_that_can_be_typed(typed):
    root = get_command(everything)
    command, *_ = resolve(root, typed.split())
    examples = [line for line in (command.epilog or "").split("\n\n") if line.startswith("eastwest ")]
    assert examples
    for example in examples:
        words = shlex.split(example.partition(" > ")[0])[1:]
        resolved, rest = resolve(root, words)
        assert resolved.name == command.name
        values, left, _ = resolved.make_parser(resolved.make_context("x", [], resilient_parsing=True)).parse_args(rest)
        assert not left
        for parameter in resolved.params:
            assert values.get(parameter.name) or not parameter.required, f"{example}: {parameter.name} is missing"


def resolve(command, words):
    """The command that these words name, and the words after it."""
    while hasattr(command, "get_command"):
        with command.make_context("x", [], resilient_parsing=True) as context:
            command = command.get_command(context, words[0])
        words = words[1:]
    return command, words
