"""Cedar files: split into policies with positions, parsed, and validated strictly against the generated schema.

Cedar's own errors here carry no positions, and very deep input ends the process, so a small lexer stands before
it: it bounds what Cedar is given, cuts the file into policies, and finds the token an error is about.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import cedarpy
from cedarpy import pst

from eastwest.policy.cedar_hints import (
    entity_fix,
    never_applies,
    unknown_attributes,
    unknown_context,
    unknown_entities,
    validation_hint,
)
from eastwest.policy.estate import Policy
from eastwest.policy.problems import Findings, Position, suggest

MAX_POLICIES_PER_FILE = 10_000
MAX_TOKENS = 20_000  # of one policy
MAX_BRACKETS = 20
MAX_OPERATORS = 90
MAX_CONDITIONALS = 20
REQUIRED = ("id", "owner", "reason")
ANNOTATIONS = (*REQUIRED, "tenants", "mode", "until")
"""Those that mean something here."""
ANY_TENANT = "any"
"""The value of ``@tenants`` with which a policy says that it permits calls across tenants."""
REPORT = "report"
"""The value of ``@mode`` with which a policy says that it decides nothing yet, and what it would change is recorded."""

_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*)
      |(?P<string>"(?:[^"\\\n]|\\.)*")
      |(?P<word>[A-Za-z_][A-Za-z0-9_]*)
      |(?P<number>[0-9]+)
      |(?P<mark>::|==|!=|<=|>=|&&|\|\||[(){}\[\];,.:<>@?+*!-])
      |(?P<wrong>.)""",
    re.VERBOSE | re.DOTALL,
)
_OPERATORS = {"&&", "||", "+", "-", "*", ".", "==", "!=", "<", "<=", ">", ">=", "!", "in", "has", "like", "is"}
_OPERATION = re.compile(r'action (?P<name>"(?:[^"\\]|\\.)*")(?P<kind>.* appliesTo .*)')
"""An operation's line of a generated schema; groups of operations apply to nothing by themselves."""
_OPEN = {"(": ")", "[": "]", "{": "}"}
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_OWNER = re.compile(r"[a-z]+:\S+")
_METHODS = ("contains", "containsAll", "containsAny", "isEmpty")
_SCOPE = ("principal", "action", "resource")


@dataclass(frozen=True, slots=True)
class Token:
    """A word of Cedar and where it stands."""

    kind: str
    text: str
    where: Position


@dataclass(frozen=True, slots=True)
class PolicyText:
    """The text of one policy, its tokens, and where it starts."""

    text: str
    tokens: tuple[Token, ...]

    @property
    def where(self) -> Position:
        """Its first token."""
        return self.tokens[0].where

    def find(self, *texts: str) -> Position:
        """Where these tokens stand beside each other; else where the policy starts."""
        words = [t.text for t in self.tokens]
        size = len(texts)
        for i in range(len(words) - size + 1):
            if tuple(words[i : i + size]) == texts:
                return self.tokens[i].where
        return self.where

    def locate(self, word: str, otherwise: Position) -> Position:
        """Where the first token of ``word`` stands."""
        wanted = [m.group() for m in _TOKEN.finditer(word) if m.lastgroup != "space"]
        if not wanted:
            return otherwise
        whole = self.find(*wanted)
        return whole if whole != self.where else self.find(wanted[0])


@dataclass(frozen=True, slots=True)
class ParsedPolicy:
    """A policy with its syntax tree and its text."""

    policy: Policy
    tree: pst.Template
    source: PolicyText
    names: tuple[tuple[str, str], ...]
    """The entities that it names, by type and id, sorted."""


def read_policies(file: str, text: str, findings: Findings) -> list[ParsedPolicy]:
    """The policies of one file that are well formed; findings for the rest."""
    parsed: list[ParsedPolicy] = []
    for count, source in enumerate(_split(file, text)):
        if count >= MAX_POLICIES_PER_FILE:
            findings.error(source.where, f"more than {MAX_POLICIES_PER_FILE} policies in one file", "split the file")
            break
        policy = _read_policy(source, findings)
        if policy is not None:
            parsed.append(policy)
    return parsed


def validate(policies: Iterable[ParsedPolicy], schema: str, known: dict[str, set[str]], findings: Findings) -> None:
    """Strict validation against the schema, and a finding for every entity that nobody has declared."""
    part = _SchemaParts(schema)
    for policy in policies:
        unknown = unknown_entities(policy, known, findings)
        unknown = unknown_context(policy, findings) or unknown
        told: set[str] = set()
        for message in _complaints(policy.source.text, part.for_policy(policy)):
            # The same complaint comes once for each operation that the policy could be about.
            kind = message.partition(" for Action::")[0]
            if unknown or kind in told:
                continue
            told.add(kind)
            if "unable to find an applicable action" in message:
                never_applies(policy, findings)
                continue
            where, fix = validation_hint(policy, message)
            findings.error(where, f"policy {policy.policy.id!r}: {_plain(message)}", fix)
        if not unknown and not told:
            unknown_attributes(policy, schema, findings)


class _SchemaParts:
    """A schema cut down to what one policy can tell apart.

    Cedar checks a policy once for each action that its head admits. To a policy that does not name them, actions of
    the same groups, principals, resources and context are one; so one of each kind is kept, and those that it names.
    """

    def __init__(self, schema: str) -> None:
        self._whole = "\n".join(line for line in schema.splitlines() if not _OPERATION.match(line))
        self._operations: dict[str, str] = {}
        kinds: dict[str, str] = {}
        for found in filter(None, map(_OPERATION.match, schema.splitlines())):
            self._operations[found["name"]] = found.string
            kinds.setdefault(found["kind"], found.string)
        self._kinds = frozenset(kinds.values())

    def for_policy(self, policy: ParsedPolicy) -> str:
        """The schema for one policy."""
        named = {json.dumps(name) for kind, name in policy.names if kind == "Action"}
        kept = self._kinds.union(self._operations[name] for name in named if name in self._operations)
        return "\n".join((self._whole, *sorted(kept)))


@lru_cache(maxsize=MAX_POLICIES_PER_FILE)
def _complaints(text: str, schema: str) -> tuple[str, ...]:
    """Cedar's complaints about one policy: from one version of an estate to the next most stay the same."""
    result = cedarpy.validate_policies(text, schema)
    return tuple(error.error.removeprefix(f"for policy `{error.policy_id}`, ") for error in result.errors)


def locate(start: Position, text: str, *tokens: str) -> Position:
    """Where these tokens stand beside each other in a policy's text that starts at ``start``; else ``start``."""
    for source in _split(start.file, text):
        where = source.find(*tokens)
        column = where.column + (start.column - 1 if where.line == 1 else 0)
        return Position(start.file, start.line + where.line - 1, column)
    return start


def words(text: str) -> PolicyText:
    """One policy's text with its tokens; lines and columns count from 1 within it."""
    return next(_split("", text))


def _split(file: str, text: str) -> Iterator[PolicyText]:
    """Cuts at each ``;``, which stands nowhere within a policy."""
    tokens: list[Token] = []
    start = line_start = 0
    line = 1
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or "wrong"
        word = match.group()
        if kind != "space":
            if not tokens:
                start = match.start()
            tokens.append(Token(kind, word, Position(file, line, match.start() - line_start + 1)))
            if word == ";":
                yield PolicyText(text[start : match.end()], tuple(tokens))
                tokens = []
        if "\n" in word:
            line += word.count("\n")
            line_start = match.start() + word.rfind("\n") + 1
    if tokens:
        yield PolicyText(text[start:], tuple(tokens))


def _read_policy(source: PolicyText, findings: Findings) -> ParsedPolicy | None:
    if not _bounded(source, findings):
        return None
    try:
        trees = cedarpy.policies_to_pst(source.text)
        canonical = cedarpy.policies_to_json_str(source.text)
    except ValueError as error:
        findings.error(*_syntax_error(source, str(error)))
        return None
    if trees.templates:
        findings.error(source.find("?"), "policy templates are not read here", "name the principal and resource")
        return None
    tree = next(iter(trees.static_policies.values()))
    for name in sorted(tree.annotations.keys() - set(ANNOTATIONS)):
        fix = suggest(name, ANNOTATIONS)
        findings.warning(source.find("@", name), f"nothing reads the annotation @{name[:80]}", fix)
    good = True
    for name in REQUIRED:
        if not tree.annotations.get(name, "").strip():
            findings.error(source.where, f"the policy has no @{name}", f'write @{name}("...") before {tree.effect}')
            good = False
    if not good:
        return None
    name, owner = tree.annotations["id"], tree.annotations["owner"]
    if not _ID.fullmatch(name):
        findings.error(source.find("@", "id"), f"{name[:80]!r} is not a policy id", "use letters, digits, ., _ and -")
        return None
    if not _OWNER.fullmatch(owner):
        where = source.find("@", "owner")
        findings.error(where, f"{owner[:80]!r} is not an owner", "write kind:name, such as group:commerce")
        return None
    tenants = tree.annotations.get("tenants")
    if tenants is not None and (tenants != ANY_TENANT or tree.effect != "permit"):
        findings.error(
            source.find("@", "tenants"),
            f"@tenants({tenants[:80]!r}) says nothing here",
            'a permit may say @tenants("any"); else leave it out, and look at context.tenant',
        )
        return None
    mode = _mode(source, tree.annotations, findings)
    if mode is None:
        return None
    report, until = mode
    policy = Policy(
        id=name,
        owner=owner,
        reason=tree.annotations["reason"],
        effect=tree.effect,
        text=source.text,
        canonical=canonical,
        report=report,
        until=until,
    )
    names = sorted((str(entity.type), entity.id) for entity in pst.entity_uids(tree))
    return ParsedPolicy(policy, tree, source, tuple(names))


def _mode(source: PolicyText, said: Mapping[str, str], findings: Findings) -> tuple[bool, dt.date | None] | None:
    """Whether the policy only reports, and until when; None where what it says of that is wrong."""
    mode, until = said.get("mode"), said.get("until")
    if mode is None and until is None:
        return False, None
    if mode != REPORT:
        where = source.find("@", "until") if mode is None else source.find("@", "mode")
        what = "@until without a mode" if mode is None else f"@mode({(mode or '')[:80]!r})"
        findings.error(where, f"{what} says nothing here", 'write @mode("report") @until("2027-01-31"), or neither')
        return None
    if until is None:
        where = source.find("@", "mode")
        findings.error(where, "a policy in report mode needs an end date", 'write @until("2027-01-31") beside @mode')
        return None
    try:
        if _DATE.fullmatch(until):  # Python reads other forms too
            return True, dt.date.fromisoformat(until)
    except ValueError:
        pass  # such as February 30
    findings.error(source.find("@", "until"), f"{until[:80]!r} is not a date", 'write @until("2027-01-31")')
    return None


def _bounded(source: PolicyText, findings: Findings) -> bool:
    """Whether Cedar can be given the text: its parser recurses without a guard of its own."""
    depth = operators = conditionals = 0
    for token in source.tokens:
        if token.kind == "string":
            continue
        depth += (token.text in _OPEN) - (token.text in _OPEN.values())
        operators += token.text in _OPERATORS
        conditionals += token.text == "if"
        if depth > MAX_BRACKETS or operators > MAX_OPERATORS or conditionals > MAX_CONDITIONALS:
            findings.error(token.where, "the policy is too deep or too long from here on", "split it into policies")
            return False
    if len(source.tokens) > MAX_TOKENS:
        findings.error(source.where, f"the policy has more than {MAX_TOKENS} words", "split it into policies")
        return False
    return True


def _syntax_error(source: PolicyText, message: str) -> tuple[Position, str, str]:
    """Position, sentence and fix for a text that Cedar does not parse.

    A grammar error is the first token after which no continuation would be accepted, found by bisection: every
    shorter text only "ends too early". Other errors name the word they are about.
    """
    message = message.splitlines()[0]
    tokens = source.tokens
    if message == "unexpected end of input":
        last = tokens[-1]
        if last.text != ";":
            return last.where, "the policy does not end", "end it with ;, and close every bracket and quote"
        return last.where, f"Cedar: {message}", "something is missing before the ;"
    if message.startswith(("unexpected token", "invalid token")):
        bad = tokens[_first_refused(source)]
        return bad.where, f"Cedar does not expect {bad.text[:80]!r} here", _token_fix(source, bad)
    quoted = re.findall(r"`([^`]*)`", message) or re.findall(r": (\S+)$", message) or re.findall(r"'([^']*)'", message)
    where = source.where
    fix = ""
    for word in quoted[:1]:
        where = source.locate(word, where)
        fix = entity_fix(source, word) if "found literal" in message else _word_fix(message, word)
    return where, f"Cedar: {message}", fix or "see the policies of the example estate"


def _first_refused(source: PolicyText) -> int:
    """Index of the first token that cannot follow those before it."""
    offsets = _offsets(source)
    low, high = 0, len(source.tokens) - 1
    while low < high:
        middle = (low + high) // 2
        if _ends_too_early(source.text[: offsets[middle]]):
            low = middle + 1
        else:
            high = middle
    return low


def _offsets(source: PolicyText) -> list[int]:
    """Where each token ends in the policy's text."""
    return [m.end() for m in _TOKEN.finditer(source.text) if m.lastgroup != "space"]


def _ends_too_early(text: str) -> bool:
    try:
        cedarpy.policies_to_pst(text)
    except ValueError as error:
        return str(error).startswith("unexpected end of input")
    return True


def _token_fix(source: PolicyText, bad: Token) -> str:
    if bad.text in {"@", "permit", "forbid"} and bad != source.tokens[0]:
        return "end the policy before it with ;"
    if bad.text in {"&", "|"}:
        return f"write {bad.text * 2}"
    if bad.text == "'":
        return 'write texts in double quotes "..."'
    if bad.text == '"':
        return "close the quote on the same line"
    if bad.text in _OPEN.values():
        return "check the brackets before it"
    return "a comma, operator or bracket may be missing before it"


def _word_fix(message: str, word: str) -> str:
    hints: tuple[tuple[str, Callable[[], str]], ...] = (
        ("invalid variable in the policy scope", lambda: suggest(word, _SCOPE)),
        ("invalid policy effect", lambda: "write permit or forbid"),
        ("invalid policy condition", lambda: "write when { ... } or unless { ... }"),
        ("not a valid method", lambda: suggest(word, _METHODS)),
        ("not a valid operator", lambda: "compare with =="),
        ("duplicate annotation", lambda: "keep one of them"),
        ("is missing the", lambda: "write (principal, action, resource)"),
        ("must be used", lambda: "write (principal, action, resource) in this order"),
        ("invalid member access", lambda: "start with principal, action, resource or context"),
        ("expected single entity uid", lambda: "name one entity, or use `principal is Workload` and a condition"),
    )
    return next((hint() for part, hint in hints if part in message), "")


def _plain(message: str) -> str:
    return re.sub(r"__cedar::internal::", "", message)
