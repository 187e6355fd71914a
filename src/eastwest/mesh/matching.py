"""The parts that matcher trees are made of (xDS unified matcher): inputs, predicates, maps, first-match lists.

What they mean in a tree is decided in ``eastwest.mesh.tree``; here is only how Envoy wants them written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from envoy.extensions.matching.common_inputs.ssl.v3 import ssl_inputs_pb2
from envoy.type.matcher.v3 import http_inputs_pb2
from google.protobuf import any_pb2
from xds.core.v3 import extension_pb2
from xds.type.matcher.v3 import matcher_pb2

# Envoy's protobuf classes carry no types.
OnMatch = Any
Matcher = Any
Predicate = Any

_EXPRESSION = 100_000
"""Characters of one expression; RE2 takes some three times as many. Its cost for a text does not grow with them."""


def pack(message: Any) -> any_pb2.Any:
    """``message`` as an Any, with deterministic bytes."""
    packed = any_pb2.Any()
    packed.Pack(message, deterministic=True)
    return packed


def typed(name: str, message: Any) -> Any:
    """An extension of a matcher."""
    return extension_pb2.TypedExtensionConfig(name=name, typed_config=pack(message))


def header(name: str) -> Any:
    """The value of a request header; several are joined by commas."""
    return typed("envoy.matching.inputs.request_headers", http_inputs_pb2.HttpRequestHeaderMatchInput(header_name=name))


# The only sound input for identity: a certificate with two URI SANs gives their joined text, which no map holds.
URI_SAN = typed("envoy.matching.inputs.uri_san", ssl_inputs_pb2.UriSanInput())
PATH = header(":path")
METHOD = header(":method")
HOST = header(":authority")


def exact_map(source: Any, entries: Mapping[str, OnMatch], otherwise: OnMatch) -> Matcher:
    """By the whole text, at a cost that does not grow with the entries."""
    return _map("exact_match_map", source, entries, otherwise)


def prefix_map(source: Any, entries: Mapping[str, OnMatch], otherwise: OnMatch) -> Matcher:
    """By the longest key that the text begins with."""
    return _map("prefix_match_map", source, entries, otherwise)


def first_of(branches: Sequence[tuple[Predicate, OnMatch]], otherwise: OnMatch) -> Matcher:
    """The first branch whose predicate holds."""
    matcher = matcher_pb2.Matcher(on_no_match=otherwise)
    for predicate, outcome in branches:
        matcher.matcher_list.matchers.add(predicate=predicate, on_match=outcome)
    return matcher


def ending(action: Any) -> OnMatch:
    """The end of a branch."""
    return matcher_pb2.Matcher.OnMatch(action=action)


def always(outcome: OnMatch) -> Matcher:
    """The same answer to everything."""
    return matcher_pb2.Matcher(on_no_match=outcome)


def nested(matcher: Matcher) -> OnMatch:
    """Ask on; a matcher that asks nothing is its outcome."""
    if matcher.WhichOneof("matcher_type") is None:
        return matcher.on_no_match
    return matcher_pb2.Matcher.OnMatch(matcher=matcher)


def regex(source: Any, expression: str) -> Predicate:
    """The whole text is of this form (RE2); what is not there has no form."""
    predicate = _single(source)
    pattern = predicate.single_predicate.value_match.safe_regex
    pattern.google_re2.SetInParent()
    pattern.regex = expression
    return predicate


def equals(source: Any, text: str) -> Predicate:
    """The text is ``text``."""
    predicate = _single(source)
    predicate.single_predicate.value_match.exact = text
    return predicate


def contains(source: Any, text: str) -> Predicate:
    """``text`` is somewhere in the text."""
    predicate = _single(source)
    predicate.single_predicate.value_match.contains = text
    return predicate


def begins(source: Any, text: str) -> Predicate:
    """The text begins with ``text``."""
    predicate = _single(source)
    predicate.single_predicate.value_match.prefix = text
    return predicate


def ends(source: Any, text: str) -> Predicate:
    """The text ends with ``text``."""
    predicate = _single(source)
    predicate.single_predicate.value_match.suffix = text
    return predicate


def one_of(source: Any, texts: Iterable[str]) -> list[Predicate]:
    """The text is one of ``texts``: predicates of which one holds, for outcomes too large to be copied for each."""
    parts: list[list[str]] = []
    size = _EXPRESSION
    # In order, so that RE2 takes what neighbours begin with once: the cost stays that of a few alternatives.
    for text in map(re.escape, sorted(texts)):
        if size + len(text) > _EXPRESSION:
            parts.append([])
            size = 0
        parts[-1].append(text)
        size += len(text)
    return [regex(source, "|".join(part)) for part in parts]


def custom(source: Any, matcher: Any) -> Predicate:
    """A matcher of its own decides."""
    predicate = _single(source)
    predicate.single_predicate.custom_match.CopyFrom(matcher)
    return predicate


def all_of(*predicates: Predicate) -> Predicate:
    """Each of them holds."""
    if len(predicates) == 1:
        return predicates[0]
    both = matcher_pb2.Matcher.MatcherList.Predicate()
    both.and_matcher.predicate.extend(predicates)
    return both


def any_of(predicates: Sequence[Predicate]) -> Predicate:
    """One of them holds."""
    if len(predicates) == 1:
        return predicates[0]
    either = matcher_pb2.Matcher.MatcherList.Predicate()
    either.or_matcher.predicate.extend(predicates)
    return either


def negated(predicate: Predicate) -> Predicate:
    """It does not hold, or what it asks about is not there."""
    made = matcher_pb2.Matcher.MatcherList.Predicate()
    made.not_matcher.CopyFrom(predicate)
    return made


def _single(source: Any) -> Predicate:
    predicate = matcher_pb2.Matcher.MatcherList.Predicate()
    predicate.single_predicate.input.CopyFrom(source)
    return predicate


def _map(kind: str, source: Any, entries: Mapping[str, OnMatch], otherwise: OnMatch) -> Matcher:
    matcher = matcher_pb2.Matcher(on_no_match=otherwise)
    if not entries:  # Envoy refuses an empty map
        return matcher
    matcher.matcher_tree.input.CopyFrom(source)
    table = getattr(matcher.matcher_tree, kind).map
    for key, outcome in entries.items():
        table[key].CopyFrom(outcome)
    return matcher
