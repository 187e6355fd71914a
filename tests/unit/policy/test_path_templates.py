from __future__ import annotations

import pytest

from eastwest.errors import InvalidInput
from eastwest.mesh.paths import Template as MeshTemplate
from eastwest.policy.paths import Template, template_problem

TEMPLATES = [
    "/",
    "/a",
    "/a/",
    "/{x}",
    "/{x}/",
    "/a/{x}",
    "/a/{x}/b",
    "/a/b.c~d/{long-name}",
    "/v1/users:batch",
    "/a,b;c",
]
PATHS = ["/", "/a", "/a/", "/a/b", "/a/b/", "/a//b", "/a/b/b", "/a/%62/b", "/a/b c", "/a?x=/y", "/a/b?x", "a", "", "*",
         "/a/b.c~d/v", "/v1/users:batch", "/é", "/a/\u0661/b", "/a/b\n"]  # fmt: skip


@pytest.mark.parametrize("text", TEMPLATES)
def test_proxy_and_table_read_templates_alike(text) -> None:
    if template_problem(text):
        with pytest.raises(InvalidInput):
            MeshTemplate.parse(text)
        return
    for path in PATHS:
        assert Template.parse(text).match(path) == MeshTemplate.parse(text).match(path), path


@pytest.mark.parametrize("path", ["/a/./b", "/a/../b"])
def test_dot_segments_are_no_parameters(path) -> None:
    assert Template.parse("/a/{x}/b").match(path) is None


@pytest.mark.parametrize(
    ("first", "second", "meet"),
    [
        ("/a/{x}", "/a/b", True),
        ("/a/{x}", "/{y}/b", True),
        ("/a/{x}", "/b/{x}", False),
        ("/a/{x}", "/a/{x}/c", False),
        ("/v1/users:batch", "/v1/{user}", False),  # a parameter takes no colon
        ("/{x}", "/", False),
    ],
)
def test_overlap(first, second, meet) -> None:
    assert Template.parse(first).overlaps(Template.parse(second)) is meet
    assert Template.parse(second).overlaps(Template.parse(first)) is meet


def test_literal_first() -> None:
    texts = ["/{a}/{b}", "/{a}/x", "/x/{b}", "/x/x"]
    order = sorted(texts, key=lambda t: Template.parse(t).precedence)
    assert order == ["/x/x", "/x/{b}", "/{a}/x", "/{a}/{b}"]
