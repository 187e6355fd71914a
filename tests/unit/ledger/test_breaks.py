"""Who would break, and whether the record is enough to say so: rows in, a report out."""

import time
from datetime import UTC, date, datetime, timedelta

import pytest

from eastwest.ledger.breaks import Caller, Evidence, Report, Seen, Subject, habits, period_of, report
from eastwest.ledger.sensors import AGENT, Span
from eastwest.policy.enforcement import Verdict

END = datetime(2026, 11, 22, 12, tzinfo=UTC)
DAY = timedelta(days=1)
START = END - 30 * DAY
A, B, OLD = "spiffe://td/a", "spiffe://td/b", "spiffe://td/old"


KNOWN = (Caller(spiffe_id=A, owner="group:a", expected=True),)


class Rules:
    """Everything passes that ``fine`` names; all is of one sensitivity."""

    def __init__(self, *fine: str) -> None:
        self.fine = fine

    def passes(self, seen: Seen) -> bool | None:
        return seen.operation in self.fine

    def sensitivity(self, seen: Seen) -> str:
        return "control" if seen.operation == "x:y:z" else "read"


def seen(**facts) -> Seen:
    facts = {"first": END - 29 * DAY, "last": END - timedelta(minutes=5), "count": 60} | facts
    facts.setdefault("days", tuple((END - n * DAY).date() for n in range(29)))
    facts.setdefault("verdict", Verdict.DENY)
    facts.setdefault("enforced", False)
    return Seen(service="shop", **facts)


def fine(caller: str, **facts) -> Seen:
    return seen(caller=caller, verdict=Verdict.ALLOW, code="ALLOWED", **facts)


def plain(**facts) -> Seen:
    return seen(code="MTLS_REQUIRED", **facts)


def judge(*rows: Seen, callers=KNOWN, rules=None, **facts) -> Report:
    subject = Subject(
        service="shop",
        port=8443,
        mode="permissive",
        owner="group:shop",
        trust_domain="td",
        callers={one.spiffe_id: one for one in callers},
        nodes={"10.0.3.7": "spiffe://td/spire/agent/n7"},
    )
    always = Span(agent="agent", node="s", spiffe_id="spiffe://td/shop", start=START - DAY)
    given = {"start": START, "end": END, "seen": rows, "spans": (always,)} | facts
    return report(subject, Evidence(**given), rules or Rules())


def kinds(found: Report) -> list[str]:
    return [reason.kind for reason in found.reasons]


def test_nobody_breaks_where_all_have_certificates():
    found = judge(fine(A))
    assert found.ready
    assert (found.breaks, found.mtls_callers, found.uptime) == ((), 1, 1.0)


def test_two_plaintext_callers_behind_one_address_are_two():
    found = judge(
        fine(A),
        plain(peer="uid:33 unit:reports.service exe:/usr/bin/php", source="10.0.3.7", count=290),
        plain(peer="uid:34 exe:/usr/bin/python3 program:backup.py", source="10.0.3.7"),
    )
    assert [one.cause for one in found.breaks] == ["plaintext", "plaintext"]
    first = found.breaks[0]
    assert first.caller == "uid:33 unit:reports.service exe:/usr/bin/php"
    assert (first.confidence, first.node, first.passes_today) == ("process", "spiffe://td/spire/agent/n7", True)
    assert first.calls_per_day == round(290 / 30, 2)
    assert 'selectors: ["systemd:id:reports.service"]' in first.fix
    assert '"unix:uid:34", "unix:path:/usr/bin/python3"' in found.breaks[1].fix
    assert kinds(found) == ["breaks"]


def test_a_process_that_fits_a_registration_has_its_owner():
    [one] = judge(fine(A), plain(peer=f"uid:33 id:{A}")).breaks
    assert (one.likely, one.owner) == (A, "group:a")
    assert "sidecar" in one.fix


def test_a_process_that_was_named_less_well_at_times_is_one():
    full = f"uid:33 exe:/usr/bin/php program:report.php id:{A}"
    rows = (
        plain(peer=full, source="10.0.3.7"),
        plain(peer=full.rpartition(" ")[0], source="10.0.3.7"),
        plain(peer="uid:33", source="10.0.3.7"),
    )
    [one] = judge(fine(A), *rows).breaks
    assert (one.caller, one.calls) == (full, 180)
    # With two of one user nobody knows which of them it was.
    other = plain(peer="uid:33 exe:/usr/bin/perl", source="10.0.3.7")
    assert len(judge(fine(A), *rows, other).breaks) == 3
    assert len(judge(fine(A), plain(peer=full, source="10.0.3.7"), plain(peer="uid:33", source="10.0.3.8")).breaks) == 2


def test_many_addresses_of_one_user_are_judged_at_once():
    """Anybody on the node makes as many as a report takes: loopback has millions."""
    rows = [plain(peer="uid:33 exe:/usr/bin/php", source=f"127.1.{n >> 8}.{n & 255}") for n in range(10_000)]
    rows += [plain(peer="uid:33", source=f"127.1.{n >> 8}.{n & 255}") for n in range(10_000)]
    begin = time.process_time()
    assert len(judge(*rows).breaks) == 10_000
    assert time.process_time() - begin < 5


def test_a_job_that_calls_by_a_tool_is_to_get_a_user_of_its_own():
    peer = "uid:0 user:root exe:/usr/bin/curl from:nightly.sh"
    [one] = judge(plain(peer=peer, source="127.0.0.1")).breaks
    assert one.fix.startswith("run nightly.sh as a user of its own; ")
    assert "curl" not in one.fix
    [cut] = judge(plain(peer=f"uid:33 exe:/{'x' * 95}", source="127.0.0.1")).breaks
    assert "unix:path" not in cut.fix
    [encoded] = judge(plain(peer="uid:33 exe:/opt/a%20b", source="127.0.0.1")).breaks
    assert "unix:path" not in encoded.fix


def test_who_speaks_old_http_fails_in_every_mode_and_is_told_so():
    old = seen(code="UNLISTED_OPERATION", cause="low_version", enforced=True, peer="uid:33", source="127.0.0.1")
    [one] = judge(old).breaks
    assert (one.cause, one.passes_today, one.confidence) == ("old_http", False, "process")
    assert "HTTP/1.1" in one.fix


def test_one_program_at_two_addresses_is_two_callers_unless_it_is_registered():
    curl = [plain(peer="uid:0 exe:/usr/bin/curl", source=f"127.0.2.{n}") for n in range(12)]
    assert {one.sources for one in judge(fine(A), *curl).breaks} == {(f"127.0.2.{n}",) for n in range(12)}
    known = [plain(peer=f"uid:7 id:{A}", source=f"127.0.2.{n}") for n in range(2)]
    [one] = judge(fine(A), *known).breaks
    assert one.sources == ("127.0.2.0", "127.0.2.1")


def test_a_job_that_still_calls_in_plaintext_is_not_mended_by_others_of_its_name():
    """Its identity calls well all the time; the job of the same registration comes once a week."""
    weekly = tuple((END - days * DAY).date() for days in (24, 17, 10, 3))
    job = plain(peer=f"uid:33 id:{A}", source="10.0.3.7", days=weekly, last=END - 3 * DAY, count=4)
    assert [one.likely for one in judge(fine(A), job).breaks] == [A]
    once = plain(peer=f"uid:33 id:{A}", source="10.0.3.7", first=END - DAY, last=END - DAY, count=1, days=weekly[-1:])
    assert len(judge(fine(A), once).breaks) == 1
    gone = plain(peer=f"uid:33 id:{A}", source="10.0.3.7", days=weekly[:1], last=END - 24 * DAY, count=4)
    assert judge(fine(A), gone).breaks == ()
    # Unless it says that it comes less often.
    monthly = (Caller(spiffe_id=A, expected=True, period=31 * DAY),)
    assert len(judge(fine(A), gone, callers=monthly).breaks) == 1


def test_a_narrow_window_makes_no_rare_caller_frequent():
    weekly = [(END - days * DAY).date() for days in (24, 17, 10, 3)]
    facts = {"start": END - 3 * DAY}
    assert judge(fine(A), habits={A: [END.date()]}, **facts).ready
    assert kinds(judge(fine(A), habits={A: weekly}, **facts)) == ["window"]
    [reason] = judge(fine(A), habits={A: [END.date()], "uid:33 exe:/usr/bin/php": weekly}, **facts).reasons
    assert "uid:33 exe:/usr/bin/php calls every 7 days: 14 days are needed" in reason.text
    assert habits([fine(A, days=tuple(weekly)), plain(source="10.0.0.1")]).keys() == {A, "10.0.0.1"}


def test_a_caller_on_another_node_is_its_address():
    [one] = judge(fine(A), plain(source="10.0.3.8")).breaks
    assert (one.caller, one.confidence) == ("10.0.3.8", "address")
    assert "ss -tnp" in one.fix


@pytest.mark.parametrize(
    ("code", "cause", "told"),
    [
        ("CERTIFICATE_REFUSED", "expired", "expired"),
        ("CERTIFICATE_REFUSED", "unknown_trust_domain", "wrong_trust_domain"),
        ("CERTIFICATE_REFUSED", "unknown_authority:ab12", "unknown_authority"),
        ("MTLS_REQUIRED", "no_certificate", "no_certificate"),
        ("SERVER_REFUSED", "alert_unknown_ca", "stale_bundle"),
    ],
)
def test_handshakes_that_fail_are_told_by_their_class(code, cause, told):
    [one] = judge(fine(A), seen(code=code, cause=cause, caller=OLD, claimed=True, enforced=True)).breaks
    assert (one.caller, one.cause, one.confidence, one.passes_today) == (OLD, told, "claimed", False)
    assert one.fix


def test_a_refusal_by_policy_counts_unless_the_policy_in_force_permits_it_now():
    denied = seen(caller=B, code="OPERATION_NOT_PERMITTED", operation="x:y:z")
    [one] = judge(fine(A), denied).breaks
    assert (one.caller, one.cause, one.risk, one.confidence) == (B, "operation_not_permitted", "control", "proven")
    mended = judge(fine(A), denied, rules=Rules("x:y:z"))
    assert mended.breaks == ()
    assert [one.caller for one in mended.recovered] == [B]


def test_who_is_cut_off_on_purpose_is_no_finding():
    assert judge(fine(A), seen(caller=B, code="CALLER_CONTAINED", enforced=True)).breaks == ()


def test_the_riskiest_come_first():
    rows = (
        fine(A),
        seen(caller=B, code="OPERATION_NOT_PERMITTED", operation="x:y:z", count=1),
        plain(source="10.0.0.1"),
    )
    assert [one.risk for one in judge(*rows).breaks] == ["control", "read"]


def test_a_caller_that_renewed_since_is_mended_and_one_that_still_fails_is_not():
    expired = {"code": "CERTIFICATE_REFUSED", "cause": "expired", "caller": A, "claimed": True, "enforced": True}
    over = seen(**expired, first=END - 5 * DAY, last=END - 5 * DAY + timedelta(minutes=10), count=20)
    assert judge(fine(A), over).breaks == ()
    # Another instance of the same name, which has not.
    assert len(judge(fine(A), seen(**expired)).breaks) == 1
    # A name that somebody made up has nobody to mend.
    assert len(judge(over).breaks) == 1


def test_a_caller_that_was_never_seen_is_a_reason_and_a_waiver_excuses_it():
    monthly = Caller(spiffe_id=B, expected=True)
    found = judge(fine(A), callers=(Caller(spiffe_id=A, expected=True), monthly))
    assert (kinds(found), found.unseen) == (["unseen"], (B,))
    waived = Caller(spiffe_id=B, expected=True, waived="w")
    found = judge(fine(A), callers=(Caller(spiffe_id=A, expected=True), waived))
    assert (found.ready, found.waived) == (True, (B,))


def test_a_claim_is_no_sight_of_a_caller():
    claim = seen(caller=A, claimed=True, code="CERTIFICATE_REFUSED", cause="expired", enforced=True)
    assert "unseen" in kinds(judge(claim))


@pytest.mark.parametrize(("period", "days", "ready"), [(31, 30, False), (15, 30, True), (31, 62, True), (7, 14, True)])
def test_the_window_is_twice_the_longest_period(period, days, ready):
    caller = Caller(spiffe_id=A, expected=True, period=timedelta(days=period))
    always = (Span(agent="agent", node="s", spiffe_id="spiffe://td/shop", start=END - 100 * DAY),)
    found = judge(fine(A), callers=(caller,), start=END - days * DAY, spans=always)
    assert found.ready is ready
    assert kinds(found) == ([] if ready else ["window"])


def test_the_window_begins_when_recording_did():
    since = (Span(agent="agent", node="s", spiffe_id="spiffe://td/shop", start=END - timedelta(hours=3)),)
    found = judge(fine(A), spans=since)
    assert kinds(found) == ["window"]
    assert "once a day" in found.reasons[0].text


def test_a_period_is_declared_or_the_longest_pause_or_the_silence_since():
    def on(*days: int) -> list[date]:
        return [(END - day * DAY).date() for day in days]

    assert period_of(timedelta(minutes=5), on(1), END) == timedelta(minutes=5)
    assert period_of(None, on(*range(20)), END) == DAY
    assert period_of(None, on(1, 8, 15), END) == 7 * DAY
    assert period_of(None, on(20), END) == 20 * DAY
    assert period_of(None, (), END) == DAY


def test_a_job_that_called_once_needs_a_window_as_long_as_its_silence():
    once = fine(B, days=((END - 20 * DAY).date(),), first=END - 20 * DAY, last=END - 20 * DAY, count=1)
    found = judge(fine(A), once)
    assert kinds(found) == ["window"]
    assert B in found.reasons[0].text


def test_a_sensor_that_was_away_and_rows_that_were_lost_are_reasons():
    spans = (
        Span(agent="n7", node="s", spiffe_id="x", start=START, end=END - 3 * DAY, why=AGENT),
        Span(agent="n7", node="s", spiffe_id="x", start=END - 3 * DAY + timedelta(hours=1)),
        Span(agent="n8", node="s", spiffe_id="x", start=START),
    )
    found = judge(fine(A), spans=spans)
    assert kinds(found) == ["sensor"]
    assert "sidecar s of n7 was away for 60 minutes" in found.reasons[0].text or "1 hour" in found.reasons[0].text
    assert kinds(judge(fine(A), lost=3)) == ["lost"]
    assert kinds(judge(fine(A), lost_unknown=True)) == ["lost"]
    assert kinds(judge(fine(A), spans=())) == ["sensor"]
    assert kinds(judge(fine(A), complete=False)) == ["incomplete"]
