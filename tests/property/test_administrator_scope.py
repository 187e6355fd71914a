"""No sequence of calls by an administrator with limits changes anything outside of them."""

import asyncio
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eastwest.errors import Error
from eastwest.policy.estate import Administrator as Row
from eastwest.policy.estate import Right
from eastwest.policy.naming import Naming
from eastwest.registry.administrators import Administrators
from eastwest.registry.entry import SERVER_PATH, Entry
from eastwest.registry.groups import group_id
from eastwest.registry.registry import Registry
from eastwest.registry.rules import Rules
from eastwest.server.registration.tokens import check_token
from eastwest.spiffe.id import TrustDomain
from eastwest.spiffe.selector import Selector
from eastwest.testing.clock import START
from eastwest.testing.entropy import SeededEntropy
from eastwest.testing.registry import MemoryRegistryStore

TD = TrustDomain("saas.example")
WHO = "spiffe://saas.example/prod/platform/ci"
RULES = Rules(
    naming=Naming(
        dict.fromkeys(("prod", "staging"), "/{environment}/{domain}/{service}"), frozenset({"commerce", "platform"})
    )
)
LIMITS = Row(
    who=WHO,
    may=(Right.WORKLOADS,),
    domains=("commerce",),
    environments=("prod",),
    nodes=("group:shop",),
    with_selectors=("k8s:ns:shop",),
)


def is_inside(entry: Entry) -> bool:
    """The limits above, in other words than the product's."""
    parts = entry.spiffe_id.path.split("/")
    return (
        len(parts) == 4
        and parts[1:3] == ["prod", "commerce"]
        and entry.parent_id == group_id(TD, "shop")
        and Selector("k8s", "ns:shop") in entry.selectors
        and not (entry.admin or entry.downstream)
    )


ids = st.sampled_from(
    ["/prod/commerce/a", "/prod/commerce/b", "/prod/platform/ci", "/staging/commerce/a", "/x", "/x/y/z/w"]
)
parents = st.sampled_from([group_id(TD, "shop"), group_id(TD, "other"), TD.id(SERVER_PATH), TD.id("/spire/agent/x/1")])
selectors = st.sets(st.sampled_from(["k8s:ns:shop", "k8s:ns:other", "k8s:sa:a", "unix:uid:1"]), min_size=1)
drafts = st.builds(
    lambda path, parent, chosen, **flags: Entry(
        spiffe_id=TD.id(path), parent_id=parent, selectors=frozenset(map(Selector.parse, chosen)), **flags
    ),
    ids,
    parents,
    selectors,
    admin=st.booleans(),
    downstream=st.booleans(),
    hint=st.sampled_from(["", "h"]),
)
insides = st.builds(
    lambda name, extra: Entry(
        spiffe_id=TD.id(f"/prod/commerce/{name}"),
        parent_id=group_id(TD, "shop"),
        selectors=frozenset(map(Selector.parse, {"k8s:ns:shop", *extra})),
    ),
    st.sampled_from("abc"),
    selectors,
)
calls = st.one_of(
    st.tuples(st.just("create"), drafts | insides),
    st.tuples(st.just("update"), st.tuples(st.integers(0, 20), drafts | insides)),
    st.tuples(st.just("delete"), st.integers(0, 20)),
    st.tuples(st.just("token"), ids),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(drafts, max_size=5), st.lists(drafts, max_size=2), st.lists(calls, max_size=12))
def test_only_what_lies_inside_changes(others, estate, sequence):
    asyncio.run(only_inside(others, estate, sequence))


async def only_inside(others, estate, sequence) -> None:
    registry = await Registry.open(TD, MemoryRegistryStore(), SeededEntropy())
    await registry.entries.create(others, START)
    try:
        await registry.entries.replace_estate([replace(draft, admin=False) for draft in estate], START)
    except Error:
        await registry.entries.replace_estate([], START)
    registry.entries.rules = RULES
    administrators = Administrators()
    administrators.replace([LIMITS])
    admin = administrators.find(WHO)
    writer = admin.writer(RULES)
    outside = {e.id: e for e in registry.entries.list().items if not is_inside(e)}
    for kind, argument in sequence:
        known = [entry.id for entry in registry.entries.list().items]
        if kind == "create":
            await registry.entries.create([argument], START, writer=writer)
        elif kind == "update" and known:
            number, wanted = argument
            target = known[number % len(known)]
            await registry.entries.update([(target, lambda _entry, wanted=wanted: wanted)], START, writer=writer)
        elif kind == "delete" and known:
            await registry.entries.delete([known[argument % len(known)]], writer=writer)
        elif kind == "token":
            try:
                check_token(admin, registry, "prod", TD.id(argument), START)
            except Error:
                continue
            raise AssertionError("a token was allowed without the right to make tokens")
        now_outside = {e.id: e for e in registry.entries.list().items if not is_inside(e)}
        assert now_outside == outside


async def test_the_rules_let_through_what_lies_inside():
    """Else the property above would hold for an administrator who can do nothing."""
    registry = await Registry.open(TD, MemoryRegistryStore(), SeededEntropy())
    registry.entries.rules = RULES
    administrators = Administrators()
    administrators.replace([LIMITS])
    writer = administrators.find(WHO).writer(RULES)
    inside = Entry(
        spiffe_id=TD.id("/prod/commerce/a"),
        parent_id=group_id(TD, "shop"),
        selectors=frozenset({Selector("k8s", "ns:shop")}),
    )
    [made] = await registry.entries.create([inside], START, writer=writer)
    assert made.error is None
    assert made.entry.managed_by == f"api:{WHO}"
    assert made.entry.environment == "prod"
    [changed] = await registry.entries.update(
        [(made.entry.id, lambda e: replace(e, hint="new"))], START, writer=writer, dry_run=True
    )
    assert changed.entry.hint == "new"
    assert registry.entries.get(made.entry.id) == made.entry
    [gone] = await registry.entries.delete([made.entry.id], writer=writer)
    assert gone.error is None
    assert registry.entries.get(made.entry.id) is None
