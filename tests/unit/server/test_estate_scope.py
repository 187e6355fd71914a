"""A scoped administrator applies an estate in which only what is theirs differs."""

from pathlib import Path

import pytest

from eastwest.policy.estate import Right
from eastwest.policy.load import load_estate
from eastwest.registry.administrators import Administrators, NotAllowed
from eastwest.server.registration.estate_entries import registrations
from eastwest.server.registration.estate_scope import check_scope
from eastwest.spiffe.id import TrustDomain

ROOT = Path(__file__).parents[3] / "examples" / "estate"
CI = "spiffe://saas.example/prod/platform/ci"
ROW = f'\n  - {{who: "{CI}", may: [workloads, services, policies, waivers], domains: [commerce]}}\n'
ALL, COMMERCE, BILLING = "workloads/all.yaml", "policies/commerce.cedar", "services/billing.yaml"
FORBID = '@id("x") @owner("group:commerce") @reason("r")\n{effect} (principal, action, resource{clause});\n'


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    found = {p.relative_to(ROOT).as_posix(): p.read_bytes() for p in sorted(ROOT.rglob("*")) if p.is_file()}
    found["estate.yaml"] = found["estate.yaml"].rstrip() + ROW.encode()
    return found


def attempt(files, *edits: tuple[str, str | None, str], right: Right | None = None) -> None:
    """Judge an estate with edits: in a file, one text by another; or a whole file (None)."""
    changed = dict(files)
    for name, old, new in edits:
        if old is None:
            changed[name] = new.encode()
        else:
            assert old.encode() in changed[name]
            changed[name] = changed[name].replace(old.encode(), new.encode(), 1)
    before, after = load_estate(files), load_estate(changed)
    administrators = Administrators()
    administrators.replace(after.settings.administrators if right else before.settings.administrators)
    by_id = {str(e.spiffe_id): e for side in (before, after) for e in registrations(side, TrustDomain("saas.example"))}
    check_scope(administrators.find(CI), before, after, (files, changed), lambda workload: by_id[workload.spiffe_id])


ALLOWED = [
    [(ALL, '["unix:user:billing"]', '["unix:user:billing2"]')],
    [(BILLING, "mtls: strict", "mtls: permissive, until: 2027-01-01")],
    [(COMMERCE, '@reason("support sees', '@reason("all of support sees')],
    [("policies/more.cedar", None, FORBID.format(effect="forbid", clause=' == Service::"billing"'))],
    [("policies/more.cedar", None, FORBID.format(effect="permit", clause=' in Domain::"commerce"'))],
]
REFUSED = [
    ([("estate.yaml", "kind: vm", "kind: edge")], "change estate.yaml"),
    ([("profiles/workload.yaml", "default: 1h", "default: 2h")], "change profile 'workload'"),
    ([(ALL, '["unix:user:notification"]', '["unix:uid:0"]')], "register spiffe://saas.example/prod/messaging/notif"),
    ([("services/notification.yaml", "8444", "9444")], "change service 'notification' of domain messaging"),
    ([("policies/messaging.cedar", "services of commerce", "services")], "about domain messaging"),
    ([("policies/messaging.cedar", None, "")], "about domain messaging"),
    ([("policies/more.cedar", None, FORBID.format(effect="forbid", clause=""))], "about every domain"),
    ([("policies/more.cedar", None, FORBID.format(effect="forbid", clause=' in Environment::"prod"'))], "every domain"),
    ([("policies/more.cedar", None, FORBID.format(effect="permit", clause=' in Domain::"platform"'))], "platform"),
    ([("waivers/notification-plaintext.yaml", "2027-03-31", "2028-03-31")], "change waiver"),
    (
        [("services/admin.yaml", "service: admin", "# of platform\nservice: admin")],
        "may not change services/admin.yaml",
    ),
]


@pytest.mark.parametrize("edits", ALLOWED)
def test_what_is_theirs_may_change(files, edits):
    attempt(files, *edits)


@pytest.mark.parametrize(("edits", "told"), REFUSED)
def test_what_is_not_theirs_may_not(files, edits, told):
    with pytest.raises(NotAllowed) as caught:
        attempt(files, *edits)
    assert told in str(caught.value)
    # Nor hidden behind what is.
    with pytest.raises(NotAllowed):
        attempt(files, *ALLOWED[0], *edits)


def test_no_first_estate_from_a_scoped_administrator(files):
    estate = load_estate(files)
    administrators = Administrators()
    administrators.replace(estate.settings.administrators)
    with pytest.raises(NotAllowed, match=r"change estate\.yaml"):
        check_scope(administrators.find(CI), None, estate, ({}, files), lambda workload: None)
    check_scope(administrators.find("unix:uid:0"), None, estate, ({}, files), lambda workload: None)
