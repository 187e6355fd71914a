"""All attestors or none, and only for a process that is still there."""

from dataclasses import dataclass, field

import pytest

from eastwest.attest.workload import AttestationFailed, ProcessGone, attest_process, gather_evidence
from eastwest.spiffe.selector import Selector


@dataclass
class Caller:
    pid: int = 7
    uid: int = 1
    gid: int = 1
    alive: bool = True

    def is_alive(self) -> bool:
        return self.alive


@dataclass
class Says:
    """Vouches for what it is told to."""

    name: str
    values: tuple[str, ...]
    seen: list[int] = field(default_factory=list)

    async def attest(self, process) -> frozenset[Selector]:
        self.seen.append(process.pid)
        return frozenset(Selector(self.name, value) for value in self.values)


class Refuses:
    name = "refuses"

    async def attest(self, process) -> frozenset[Selector]:
        process.alive = False
        raise AttestationFailed("cannot be read")


class Kills:
    name = "kills"

    async def attest(self, process) -> frozenset[Selector]:
        process.alive = False
        return frozenset({Selector("kills", "it")})


async def test_selectors_of_all_attestors_come_together():
    found = await attest_process(Caller(), [Says("a", ("1", "2")), Says("b", ("1",))])
    assert {str(selector) for selector in found} == {"a:1", "a:2", "b:1"}


async def test_one_that_fails_fails_all():
    with pytest.raises(AttestationFailed, match="cannot be read"):
        await attest_process(Caller(), [Says("a", ("1",)), Refuses()])


async def test_facts_of_a_process_that_ended_meanwhile_are_worth_nothing():
    with pytest.raises(ProcessGone):
        await attest_process(Caller(), [Kills()])
    with pytest.raises(ProcessGone):
        await attest_process(Caller(alive=False), [Says("a", ("1",))])


class Down:
    name = "systemd"

    async def attest(self, _process) -> frozenset[Selector]:
        raise AttestationFailed("the bus does not answer")


def selectors(*texts: str) -> frozenset[Selector]:
    return frozenset(map(Selector.parse, texts))


async def test_what_is_known_is_kept_apart_from_what_is_not():
    evidence = await gather_evidence(Caller(), [Says("unix", ("uid:1",)), Down(), Says("x", ("y",))])
    assert evidence.selectors == selectors("unix:uid:1", "x:y")
    assert set(evidence.failed) == {"systemd"}
    # Whoever may be meant by an entry must not hear that there is none for it; whoever cannot, need not wait.
    assert evidence.could_earn(selectors("systemd:id:a.service"))
    assert evidence.could_earn(selectors("systemd:id:a.service", "unix:uid:1"))
    assert not evidence.could_earn(selectors("systemd:id:a.service", "unix:uid:2"))
    assert not evidence.could_earn(selectors("unix:uid:1"))
    assert not evidence.could_earn(selectors("unix:uid:2"))


async def test_a_process_that_is_gone_is_told_whoever_failed():
    with pytest.raises(ProcessGone):
        await gather_evidence(Caller(alive=False), [Down()])
    with pytest.raises(ProcessGone):
        await gather_evidence(Caller(), [Kills(), Down()])
