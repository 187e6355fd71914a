"""What the nouns of the command line share."""

import importlib

import pytest
import typer
from typer.main import get_command

from eastwest.cli.main import COMMANDS
from eastwest.cli.options import counted, start_logging
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
    command = get_command(target)
    return [
        (name, parameter)
        for name, verb in (command.commands if hasattr(command, "commands") else {"": command}).items()
        for parameter in verb.params
    ]


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
