"""Callers and ledger compared: every way in which they can differ is told, and agreement needs all of it."""

import dataclasses

from eastwest.cli.demo.calls import Made
from eastwest.cli.demo.ledger import join
from eastwest.cli.demo.place import WORKLOADS
from eastwest.cli.demo.strong import LEGACY, LOAD, attack, probe, work

IDS = {workload.name: workload.spiffe_id for workload in WORKLOADS}


class Ledger:
    """Hands out rows as the admin API does."""

    def __init__(self, rows, lost=0):
        self._rows = [{"row": number, "enforced": True, **row} for number, row in enumerate(rows, 1)]
        self._lost = lost

    async def decisions(self, *, after, limit):
        return [row for row in self._rows if row["row"] > after][: min(limit, 2)], self._lost


def made(call, reference=""):
    certificate = "PEM" if call.via == "tls" else ""
    code = call.code if call.status else ""
    return Made(call, status=call.status, code=code, error=call.error, reference=reference, certificate=certificate)


def row(call, **fields):
    verdict = "allow" if call.recorded == "ALLOWED" else "deny"
    base = {"service": call.service, "verdict": verdict, "code": call.recorded, "method": call.method}
    caller = IDS[call.caller] if call.via == "sidecar" else ""
    return base | {"caller": caller, "tenant": call.tenant} | fields


ALLOWED = work()[0]
DENIED = next(call for call in attack("k", own_uids=False) if call.name == "other-tenants-invoices")
HANDSHAKE = probe()
CALLS = [made(ALLOWED), made(DENIED, "ref-1"), made(HANDSHAKE), made(LEGACY, "ref-2")]
ROWS = [
    row(ALLOWED),
    row(DENIED, reference="ref-1"),
    row(HANDSHAKE, cause="no_certificate"),
    row(LEGACY, reference="ref-2", enforced=False),
    row(LOAD, count=3),
    row(LOAD, count=4),
]


def fresh():
    return [dataclasses.replace(each, record=None) for each in CALLS]


async def test_agreement():
    calls = fresh()
    joined = await join(Ledger(ROWS), calls, 7, 0)
    assert joined.ok
    assert (joined.agreed, joined.total, joined.rows) == (4, 4, 11)
    assert [each.verdict for each in calls] == ["allow", "deny", "deny", "report"]
    assert all(each.ok for each in calls)
    assert calls[2].observed == "handshake refused MTLS_REQUIRED"


async def test_each_difference_is_told():
    without = [r for r in ROWS if r.get("reference") != "ref-1"]
    other_code = [r | {"code": "OPERATION_NOT_PERMITTED"} if r.get("reference") == "ref-1" else r for r in ROWS]
    other_caller = [r | {"caller": IDS["console"]} if r.get("reference") == "ref-1" else r for r in ROWS]
    cases = {
        "has no such decision": (without, 7),
        "says OPERATION_NOT_PERMITTED": (other_code, 7),
        f"says {IDS['console']} called": (other_caller, 7),
        "8 calls were answered, the ledger counts 7": (ROWS, 8),
    }
    for sentence, (rows, load) in cases.items():
        joined = await join(Ledger(rows), fresh(), load, 0)
        assert not joined.ok
        assert sentence in " ".join(joined.missing)


async def test_lost_rows_are_no_agreement():
    assert not (await join(Ledger(ROWS, lost=1), fresh(), 7, 0)).ok


async def test_what_nobody_can_record_is_not_looked_for():
    beyond = [call for call in attack("k", own_uids=True) if call.recorded == "-"]
    assert len(beyond) == 2
    joined = await join(Ledger(ROWS), [*fresh(), *(made(call) for call in beyond)], 7, 0)
    assert joined.ok
    assert joined.total == 4


def test_every_call_has_a_name_of_its_own_and_the_key_is_never_shown():
    calls = [*attack("ik-secret", own_uids=True), *work(), LEGACY]
    assert len({call.name for call in calls}) == len(calls)
    assert "ik-secret" not in repr([made(call) for call in calls])
