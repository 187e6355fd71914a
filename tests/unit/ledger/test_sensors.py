"""When nobody was there to write down who called."""

from datetime import UTC, datetime, timedelta

from eastwest.ledger.sensors import AGENT, PROCESS, STREAM, Gap, Span, gaps, recording_since, uptime

T = datetime(2026, 11, 1, tzinfo=UTC)
H = timedelta(hours=1)
END = T + 24 * H


def span(node: str, start: float, end: float | None = None, why: str = "", agent: str = "a") -> Span:
    ended = None if end is None else T + end * H
    return Span(
        agent=agent, node=node, spiffe_id="spiffe://td/x" if node else "", start=T + start * H, end=ended, why=why
    )


def found(*spans: Span) -> list[tuple[str, float, float]]:
    return [(gap.node, (gap.start - T) / H, (gap.end - T) / H) for gap in gaps(spans, T, END)]


def test_a_point_that_is_always_there_has_none():
    assert found(span("s1", 0)) == []


def test_an_hour_without_the_agent_is_a_gap():
    spans = (span("", 0, 5, AGENT), span("", 6), span("s1", 0, 5, AGENT), span("s1", 6))
    assert ("s1", 5, 6) in found(*spans)
    assert 0.95 < uptime(spans, gaps(spans, T, END), T, END) < 0.96


def test_an_hour_without_one_of_two_sidecars_is_a_gap_too():
    assert found(span("s1", 0), span("s2", 0, 5, STREAM), span("s2", 6)) == [("s2", 5, 6)]


def test_a_sidecar_that_ended_is_no_gap_while_others_serve():
    assert found(span("s1", 0), span("s2", 0, 5, PROCESS)) == []


def test_a_time_without_any_sidecar_is_a_gap_however_they_ended():
    assert found(span("s1", 0, 5, PROCESS), span("s2", 8)) == [("", 5, 8)]


def test_a_sidecar_that_never_came_back_was_missing_until_its_agent_could_say_so():
    spans = (span("", 0, 5, AGENT), span("", 7), span("s1", 0, 5, AGENT), span("s2", 0))
    assert found(*spans) == [("s1", 5, 7)]


def test_an_agent_that_is_still_away_is_a_gap_up_to_now():
    assert found(span("", 0, 20, AGENT), span("s1", 0, 20, AGENT)) == [("", 20, 24), ("s1", 20, 24)]


def test_a_moment_is_none_and_what_lies_outside_of_the_window_is_left_out():
    moment = 0.5 / 60
    assert found(span("s1", 0, 5, STREAM), span("s1", 5 + moment)) == []
    assert found(span("s1", 0, 24 - moment, STREAM)) == [("", 24 - moment, 24), ("s1", 24 - moment, 24)]
    assert found(span("s1", 0), span("s2", 0, 24 - moment, PROCESS)) == []
    assert gaps((span("s1", 0, 2, STREAM), span("s1", 3)), T + 4 * H, END) == []
    assert gaps((span("s1", 0, 2, STREAM), span("s1", 8)), T + 4 * H, END) == [
        Gap(start=T + 4 * H, end=T + 8 * H),
        Gap(agent="a", node="s1", start=T + 4 * H, end=T + 8 * H),
    ]


def test_before_the_first_span_nothing_was_recorded():
    spans = [span("s1", 12)]
    assert recording_since(spans) == T + 12 * H
    assert uptime(spans, gaps(spans, T, END), T, END) == 0.5
    assert uptime([], [], T, END) == 0


def test_services_without_a_sidecar_stand_by_their_agents():
    assert found(span("", 0, 5, AGENT), span("", 6)) == [("", 5, 6), ("", 5, 6)]
