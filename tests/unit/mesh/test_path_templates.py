import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eastwest.mesh.paths import MalformedTemplate, Template, by_prefix

SEGMENTS = st.sampled_from(["a", "ab", "b", "users", "v1.0", "{x}", "{y}", "{z}"])


@st.composite
def templates(draw) -> Template:
    segments = draw(st.lists(SEGMENTS, min_size=1, max_size=4))
    seen: set[str] = set()
    unique = [s for s in segments if not s.startswith("{") or not (s in seen or seen.add(s))]
    return Template.parse("/" + "/".join(unique))


paths = st.lists(
    st.one_of(st.sampled_from(["a", "ab", "b", "users", "v1.0", "", ".", "..", "a;b", "a%2f"]), st.text(max_size=3)),
    min_size=1,
    max_size=5,
).map(lambda parts: "/" + "/".join(parts))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a", "slash"),
        ("/a/{b", "whole"),
        ("/a/x{b}", "whole"),
        ("/a/{b}{c}", "whole"),
        ("/{a}/{a}", "twice"),
        ("/a/../b", "dot"),
        ("/a//b", "empty"),
        ("/a;b", "whole"),
        ("/a?b", "whole"),
        ("/a%20b", "whole"),
        ("/{}", "whole"),
    ],
)
def test_a_malformed_template_is_refused(text, reason):
    with pytest.raises(MalformedTemplate) as error:
        Template.parse(text)
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("template", "prefix"),
    [("/", "/"), ("/a", "/a"), ("/a/", "/a/"), ("/{x}", "/"), ("/a/{x}/b", "/a/"), ("/a/b/{x}", "/a/b/")],
)
def test_the_prefix_ends_where_the_first_parameter_begins(template, prefix):
    assert Template.parse(template).prefix == prefix


def test_parameters_are_whole_segments_of_the_safe_alphabet():
    template = Template.parse("/t/{tenant}/i/{item}")
    assert template.match("/t/acme/i/1~.-_?x=/../y") == {"tenant": "acme", "item": "1~.-_"}
    for path in (
        "/t/acme/i/",
        "/t//i/1",
        "/t/a/i/1/",
        "/t/a/i/1\n",
        "/t/a;b/i/1",
        "/t/a%2f/i/1",
        "t/a/i/1",
        "/t/a/j/1",
    ):
        assert template.match(path) is None, path


def test_the_tenant_expression_is_narrow():
    expression = Template.parse("/t/{tenant}/i").regex("tenant", ["acme", "a.b"])
    assert re.fullmatch(expression, "/t/a.b/i?q")
    for path in ("/t/acmes/i", "/t/axb/i", "/t//i", "/t/acme|a/i"):
        assert not re.fullmatch(expression, path), path


@given(templates(), paths, st.sampled_from(["", "?", "?q=1", "?/a/b"]))
def test_expression_and_match_are_one_meaning(template, path, query):
    if "?" in path or "\n" in path:
        return
    assert bool(re.fullmatch(template.regex(), path + query)) == (template.match(path + query) is not None)


@given(st.lists(templates(), min_size=1, max_size=6), paths)
def test_the_longest_prefix_lists_every_template_that_can_match(found, path):
    table = by_prefix(found)
    keys = [prefix for prefix in table if path.startswith(prefix)]
    matching = {index for index, template in enumerate(found) if template.match(path) is not None}
    if not matching:
        return
    listed = table[max(keys, key=len)]
    assert matching <= set(listed)
    first = next(index for index in listed if index in matching)
    assert found[first].specificity == min(found[index].specificity for index in matching)
