"""What a service file calls the parameters that a document calls otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from eastwest.policy.paths import Template


class Renames:
    """What the file calls the parameters of the document; people may have renamed one, for the tenant's sake."""

    def __init__(self, tenant: str) -> None:
        self._tenant = tenant
        self._names: dict[str, set[str]] = {}

    def learn(self, document: str, file: str) -> None:
        """Two templates of one shape."""
        if document:
            pairs = zip(Template.parse(document).parameters, Template.parse(file).parameters, strict=True)
            for theirs, ours in pairs:
                self._names.setdefault(theirs, set()).add(ours)

    def apply(self, path: str) -> str:
        """A path of the document with the file's names, as far as the file agrees with itself."""
        if not path:
            return path
        template = Template.parse(path)
        names = {p: next(iter(self._names[p])) for p in template.parameters if len(self._names.get(p, ())) == 1}
        return _renamed(template, [names.get(p, p) for p in template.parameters])

    def carried(self, before: str, path: str) -> str | None:
        """The path that an operation moves to, with the names it had; None where it would lose its tenant."""
        if not path or not before:
            return ""
        old, new = Template.parse(before), Template.parse(self.apply(path))
        had = {old.segments[i - 1][0]: p for i, (_, p) in enumerate(old.segments) if p and i and old.segments[i - 1][0]}
        names = [had.get(new.segments[i - 1][0], p) if i else p for i, (_, p) in enumerate(new.segments) if p]
        if self._tenant in old.parameters and self._tenant not in names:
            return None
        return _renamed(new, names)


def _renamed(template: Template, names: Sequence[str]) -> str:
    """The template with other names for its parameters, unless two would be the same."""
    if len(set(names)) != len(names):
        names = template.parameters
    left = iter(names)
    return "".join(f"/{{{next(left)}}}" if parameter else f"/{literal}" for literal, parameter in template.segments)
