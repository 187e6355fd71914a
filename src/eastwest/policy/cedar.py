"""Cedar files: split into policies with positions, parsed, and validated strictly against the generated schema.

Cedar's own errors here carry no positions, and very deep input ends the process, so a small lexer stands before
it: it bounds what Cedar is given, cuts the file into policies, and finds the token an error is about.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from typing import Any

import cedarpy
from cedarpy import pst

from eastwest.policy.estate import Policy, Sensitivity
from eastwest.policy.problems import Findings, Position, suggest, suggest_id

MAX_POLICIES_PER_FILE = 10_000
MAX_TOKENS = 20_000  # of one policy
MAX_BRACKETS = 20
MAX_OPERATORS = 90
MAX_CONDITIONALS = 20
REQUIRED = ("id", "owner", "reason")
ANNOTATIONS = (*REQUIRED, "tenants")
"""Those that mean something here."""
CONTEXT: dict[str, tuple[str, ...]] = {
    "tenant": (),
    "method": (),
    "path": (),
    "step_up": ("action", "resource", "tenant", "approver"),
    "approval": ("id", "approver"),
    "transaction": ("id", "origin"),
}
"""What the context has, and what that has in turn (``eastwest.policy.schema``)."""
ANY_TENANT = "any"
"""The value of ``@tenants`` with which a policy says that it permits calls across tenants."""

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
        unknown = _unknown_entities(policy, known, findings)
        unknown = _unknown_context(policy, findings) or unknown
        told: set[str] = set()
        for message in _complaints(policy.source.text, part.for_policy(policy)):
            # The same complaint comes once for each operation that the policy could be about.
            kind = message.partition(" for Action::")[0]
            if unknown or kind in told:
                continue
            told.add(kind)
            if "unable to find an applicable action" in message:
                _never_applies(policy, findings)
                continue
            where, fix = _validation_hint(policy, message)
            findings.error(where, f"policy {policy.policy.id!r}: {_plain(message)}", fix)


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
    policy = Policy(
        id=name,
        owner=owner,
        reason=tree.annotations["reason"],
        effect=tree.effect,
        text=source.text,
        canonical=canonical,
    )
    names = sorted((str(entity.type), entity.id) for entity in pst.entity_uids(tree))
    return ParsedPolicy(policy, tree, source, tuple(names))


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
        where = _locate(source, word, where)
        fix = _entity_fix(source, word) if "found literal" in message else _word_fix(message, word)
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


def _entity_fix(source: PolicyText, literal: str) -> str:
    """What to write for a text that stands where an entity must."""
    words = [token.text for token in source.tokens]
    kinds = {"principal": ("Workload", "Domain"), "action": ("Action", "Action"), "resource": ("Service", "Domain")}
    at = words.index(literal) if literal in words else 0
    variable, relation = (words[at - 2], words[at - 1]) if at > 1 else ("", "")
    if variable not in kinds:
        return 'write a name such as Service::"billing"'
    return f"write {kinds[variable][relation == 'in']}::{literal}"


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


def _locate(source: PolicyText, word: str, otherwise: Position) -> Position:
    """Where the first token of ``word`` stands."""
    wanted = [m.group() for m in _TOKEN.finditer(word) if m.lastgroup != "space"]
    if not wanted:
        return otherwise
    whole = source.find(*wanted)
    return whole if whole != source.where else source.find(wanted[0])


def _unknown_entities(policy: ParsedPolicy, known: dict[str, set[str]], findings: Findings) -> bool:
    found = False
    for kind, name in policy.names:
        if kind not in known:
            message, fix = f"policy {policy.policy.id!r} names an entity of type {kind!r}", suggest(kind, known)
        elif name not in known[kind]:
            what = "operation" if kind == "Action" else kind.lower()
            message = f"policy {policy.policy.id!r} names the {what} {name!r}, which nobody declares"
            fix = _meant(kind, name, known[kind])
        else:
            continue
        found = True
        findings.error(policy.source.find(kind, "::", f'"{name}"'), message, fix)
    return found


def _meant(kind: str, name: str, known: set[str]) -> str:
    """Sensitivities are actions too, so that ``in`` can name them: one may be meant, yet none is an operation."""
    if kind == "Workload":
        return suggest_id(name, known, otherwise="declare it in workloads/, or correct the name")
    if kind == "Action" and not difflib.get_close_matches(name, set(Sensitivity), n=1, cutoff=0.6):
        known = known - set(Sensitivity)
    return suggest(name, known, otherwise="declare it, or correct the name")


def _unknown_context(policy: ParsedPolicy, findings: Findings) -> bool:
    """Attributes that the context never has. Cedar takes ``has`` of one for an honest question that is answered no."""
    found: dict[tuple[str, ...], str] = {}
    for path in _context_paths(policy.tree.clauses):
        if path[0] not in CONTEXT:
            found[path[:1]] = suggest(path[0], CONTEXT)
            if path[0] in {"time", "now", "date", "datetime"}:
                found[path[:1]] = "no answer depends on the time; known: " + ", ".join(sorted(CONTEXT))
        elif len(path) > 1 and path[1] not in CONTEXT[path[0]]:
            found[path[:2]] = suggest(path[1], CONTEXT[path[0]])
    for path, fix in found.items():
        where = policy.source.find(".", path[-1])
        if where == policy.source.where:
            where = policy.source.find(path[-1])
        whole = ".".join(("context", *path[:-1]))
        findings.error(where, f"policy {policy.policy.id!r}: {whole} has no {path[-1]!r}", fix)
    return bool(found)


def _context_paths(node: Any) -> Iterator[tuple[str, ...]]:
    """``("step_up", "tenant")`` for ``context.step_up.tenant``, and for ``has`` the same, wherever one is read."""
    stack = [node]
    while stack:
        item = stack.pop()
        if isinstance(item, pst.GetAttr | pst.HasAttr):
            names: tuple[str, ...] = ()
            inner: Any = item
            while isinstance(inner, pst.GetAttr | pst.HasAttr):
                names = (*(inner.attrs if isinstance(inner, pst.HasAttr) else (inner.attr,)), *names)
                inner = inner.base
            if inner == pst.Var("context"):
                yield names
        if isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, tuple):
            stack.extend(item)
        elif is_dataclass(item):
            stack.extend(getattr(item, f.name) for f in fields(item))


def _never_applies(policy: ParsedPolicy, findings: Findings) -> None:
    """An estate may lack operations of a sensitivity; a sensitivity written as an operation is a mistake."""
    where = policy.source.find("action")
    action = policy.tree.action
    message = f"policy {policy.policy.id!r} applies to no operation"
    if isinstance(action, pst.ActionEq) and action.entity.id in set(Sensitivity):
        findings.error(where, message, f'write action in Action::"{action.entity.id}"')
    else:
        findings.warning(where, message, "no operation of the estate fits its action, principal and resource")


def _validation_hint(policy: ParsedPolicy, message: str) -> tuple[Position, str]:
    quoted = re.findall(r"`([^`]*)`", message)
    where = policy.source.where
    if quoted:
        where = _locate(policy.source, quoted[0].rpartition(".")[2], where)
    if "optional attribute" in message and quoted:
        owner = "context" if "in context" in message else "principal"
        *path, last = quoted[0].split(".")
        if quoted[0] == "tenant" and owner == "context":
            return where, "name the operations that are per tenant, or test `context has tenant &&` before it"
        return where, f"test `{'.'.join([owner, *path])} has {last} &&` before it"
    if "not compatible" in message and "String" in message:
        kind = next((kind for kind in ("Workload", "Service", "Domain", "Environment", "Action") if kind in message), "")
        literal = _compared_text(policy.source, _SPELLED.get(kind, ())) if kind else None
        if literal is not None:
            return literal.where, f"write {kind}::{literal.text}"
    if "not found" in message and "attribute" in message:
        return where, "workloads and services have environment, domain, owner; workloads may have tenants"
    return where, "see the schema: eastwest estate schema --cedar DIR"


_SPELLED = {
    "Workload": ("principal",),
    "Action": ("action",),
    "Service": ("resource",),
    "Domain": ("domain",),
    "Environment": ("environment",),
}
"""How the variable or the attribute ends that holds an entity of a type."""


def _compared_text(source: PolicyText, spelled: tuple[str, ...]) -> Token | None:
    """The text that is compared with ``==`` or ``!=`` with one of these."""
    tokens = source.tokens
    for i, token in enumerate(tokens[1:-1], 1):
        if token.text not in {"==", "!="}:
            continue
        if tokens[i + 1].kind == "string" and tokens[i - 1].text in spelled:
            return tokens[i + 1]
        if tokens[i - 1].kind == "string":
            # On the other side it may be `principal.domain`: the last word of the row counts.
            after = i + 1
            while after + 2 < len(tokens) and tokens[after + 1].text == ".":
                after += 2
            if tokens[after].text in spelled:
                return tokens[i - 1]
    return None


def _plain(message: str) -> str:
    return re.sub(r"__cedar::internal::", "", message)
