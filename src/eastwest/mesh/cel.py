"""Comparisons that no other matcher makes: two values of one request against each other (CEL, as a parsed tree).

An expression that meets something absent fails, and a failed expression matches nothing. So each is written as what
must hold, never as what must not.
"""

from __future__ import annotations

from typing import Any

from cel.expr import syntax_pb2
from xds.type.matcher.v3 import cel_pb2, http_inputs_pb2
from xds.type.v3 import cel_pb2 as expression_pb2

from eastwest.mesh import matching

Expression = Any

_INPUT = matching.typed(
    "envoy.matching.inputs.cel_data_input",
    http_inputs_pb2.HttpAttributesCelMatchInput(),
)


def header(name: str) -> Expression:
    """The value of a request header; several are joined by commas."""
    return _index(_select(_name("request"), "headers"), name)


def metadata(namespace: str, *path: str) -> Expression:
    """What an earlier filter noted."""
    found = _index(_select(_name("metadata"), "filter_metadata"), namespace)
    for key in path:
        found = _index(found, key)
    return found


def peer_uri() -> Expression:
    """The first URI of the caller's certificate; only where a tree has found that there is one."""
    return _select(_name("connection"), "uri_san_peer_certificate")


def peer_digest() -> Expression:
    """SHA-256 of the caller's certificate (DER) in lower-case hex."""
    return _select(_name("connection"), "sha256_peer_certificate_digest")


def route_name() -> Expression:
    """The route that the request takes."""
    return _select(_name("xds"), "route_name")


def text(value: str) -> Expression:
    """A constant."""
    return syntax_pb2.Expr(const_expr=syntax_pb2.Constant(string_value=value))


def same(one: Expression, other: Expression) -> Expression:
    """They are equal."""
    return _call("_==_", one, other)


def both(one: Expression, other: Expression) -> Expression:
    """Both hold."""
    return _call("_&&_", one, other)


def holds(expression: Expression) -> matching.Predicate:
    """``expression`` as a predicate of a matcher tree."""
    numbered = syntax_pb2.Expr()
    numbered.CopyFrom(expression)
    _number(numbered, 0)
    parsed = syntax_pb2.ParsedExpr(expr=numbered)
    matcher = cel_pb2.CelMatcher(expr_match=expression_pb2.CelExpression(cel_expr_parsed=parsed))
    return matching.custom(_INPUT, matching.typed("envoy.matching.matchers.cel_matcher", matcher))


def _name(name: str) -> Expression:
    return syntax_pb2.Expr(ident_expr=syntax_pb2.Expr.Ident(name=name))


def _select(operand: Expression, field: str) -> Expression:
    return syntax_pb2.Expr(select_expr=syntax_pb2.Expr.Select(operand=operand, field=field))


def _index(operand: Expression, key: str) -> Expression:
    return _call("_[_]", operand, text(key))


def _call(function: str, *arguments: Expression) -> Expression:
    return syntax_pb2.Expr(call_expr=syntax_pb2.Expr.Call(function=function, args=arguments))


def _number(expression: Expression, last: int) -> int:
    """Give each node an id of its own, as parsers do; the last one given."""
    last += 1
    expression.id = last
    kind = expression.WhichOneof("expr_kind")
    if kind == "select_expr":
        last = _number(expression.select_expr.operand, last)
    elif kind == "call_expr":
        for argument in expression.call_expr.args:
            last = _number(argument, last)
    return last
