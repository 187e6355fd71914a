"""Plug-ins by entry point: real distributions in a directory of the test's own, wrong in every way."""

import itertools
import textwrap

import pytest

from eastwest.errors import FailedPrecondition, InvalidInput
from eastwest.process.plugins import installed, load_plugin

GROUP = "eastwest.test_plugins"
WHERE = "server.toml: test_plugins.tape"
NUMBERS = itertools.count()
SOURCE = """
    import msgspec
    from eastwest.errors import FailedPrecondition, InvalidInput

    class Tape:
        class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
            device: str
            speed: int = 1
            labels: dict[str, str] = {}

        def __init__(self, options, context):
            self.options, self.context = options, context

        @classmethod
        def from_options(cls, options, context):
            if options.speed == 13:
                raise FailedPrecondition("the tape is torn", fix="splice it")
            if options.speed == 14:
                raise InvalidInput("it does not turn", where="/dev/tape")
            return cls(options, context)

    class Plain:
        @classmethod
        def from_options(cls, options, context):
            assert options is None
            return cls()
"""


@pytest.fixture
def distribute(tmp_path, monkeypatch):
    """Makes an installed distribution: its name, its entry points of the test's group, and a module."""

    def make(name="tape-store", points=None, source=SOURCE):
        module = f"plugin_of_a_test_{next(NUMBERS)}"
        site = tmp_path / module
        info = site / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{key} = {module}:{value}" for key, value in (points or {"tape": "Tape"}).items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))
        (site / f"{module}.py").write_text(textwrap.dedent(source))
        monkeypatch.syspath_prepend(str(site))

    return make


def load(table, name="tape", context=None):
    return load_plugin(GROUP, name, table, context, WHERE)


def test_a_plugin_is_made_with_its_checked_options_and_context(distribute):
    distribute()
    made = load({"device": "/dev/tape", "labels": {"a": "b"}}, context="here")
    assert (made.options.device, made.options.speed, made.options.labels) == ("/dev/tape", 1, {"a": "b"})
    assert made.context == "here"


def test_a_plugin_without_options_is_given_none(distribute):
    distribute(points={"plain": "Plain"})
    assert load({}, "plain")


def test_installed_names_are_listed_in_order(distribute):
    assert installed(GROUP) == ()
    distribute(points={"tape": "Tape", "plain": "Plain"})
    assert installed(GROUP) == ("plain", "tape")


def test_an_unknown_plugin_is_told_with_the_nearest_name(distribute):
    distribute()
    with pytest.raises(FailedPrecondition, match=r"no plug-in 'tap' is installed.*did you mean 'tape'") as caught:
        load({}, "tap")
    assert caught.value.where == WHERE


def test_an_unknown_plugin_where_there_is_none():
    with pytest.raises(FailedPrecondition, match=r"no plug-in 'tape' is installed.*none is known"):
        load({})


def test_an_unknown_option_is_told_with_file_table_key_and_suggestion(distribute):
    distribute()
    with pytest.raises(InvalidInput) as caught:
        load({"device": "x", "sped": 2})
    assert str(caught.value) == (
        "server.toml: test_plugins.tape: there is no option 'sped' (did you mean 'speed'? known: device, speed, labels)"
    )


def test_an_option_for_a_plugin_that_takes_none(distribute):
    distribute(points={"plain": "Plain"})
    with pytest.raises(InvalidInput, match=r"there is no option 'x' \(remove it: none is known here\)"):
        load({"x": 1}, "plain")


def test_a_missing_option_is_named(distribute):
    distribute()
    with pytest.raises(InvalidInput, match=r"test_plugins\.tape: the option 'device' is missing"):
        load({"speed": 2})


@pytest.mark.parametrize(
    ("table", "place"),
    [
        ({"device": 7}, r"test_plugins\.tape\.device: Expected `str`, got `int`"),
        ({"device": "x", "speed": "fast"}, r"test_plugins\.tape\.speed: Expected `int`, got `str`"),
        ({"device": "x", "speed": True}, r"test_plugins\.tape\.speed: Expected `int`, got `bool`"),
        ({"device": "x", "labels": {"a": 1}}, r"test_plugins\.tape\.labels.*: Expected `str`, got `int`"),
    ],
)
def test_an_option_of_the_wrong_type_is_told_with_its_key(distribute, table, place):
    distribute()
    with pytest.raises(InvalidInput, match=place):
        load(table)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import a_library_that_is_not_there", "ModuleNotFoundError: No module named 'a_library_that_is_not_there'"),
        ("raise RuntimeError('broken')", "RuntimeError: broken"),
        ("x = (", "SyntaxError"),
        ("", "AttributeError: .*'Tape'"),
        ("class Tape: pass", "AttributeError: .*from_options"),
    ],
)
def test_a_plugin_that_does_not_load_is_told_with_its_distribution(distribute, source, reason):
    distribute(source=source)
    with pytest.raises(
        FailedPrecondition, match=rf"the plug-in 'tape' of tape-store cannot be loaded: {reason}"
    ) as error:
        load({})
    assert error.value.where == WHERE
    assert error.value.fix


def test_two_distributions_with_one_name_are_refused(distribute):
    distribute("tape-store")
    distribute("other-tapes")
    with pytest.raises(
        FailedPrecondition, match="several distributions offer a plug-in 'tape': other-tapes, tape-store"
    ):
        load({"device": "x"})


def test_what_a_plugin_refuses_is_told_with_the_table(distribute):
    distribute()
    with pytest.raises(FailedPrecondition) as caught:
        load({"device": "x", "speed": 13})
    assert str(caught.value) == "server.toml: test_plugins.tape: the tape is torn (splice it)"
    with pytest.raises(InvalidInput) as caught:
        load({"device": "x", "speed": 14})
    assert str(caught.value) == "/dev/tape: it does not turn"
