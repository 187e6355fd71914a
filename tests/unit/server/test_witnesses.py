"""Cosignatures are collected over real HTTP; a lost quorum is told; whoever shows another history stops the log."""

import asyncio

import pytest
from starlette.responses import PlainTextResponse, Response
from witness_world import ORIGIN, Liar, OurLog, Watcher, lines_for, listening

from eastwest.errors import Corrupt, FailedPrecondition, InvalidInput, LogUnavailable, Unavailable
from eastwest.log.checkpoint import Checkpoint, open_checkpoint, open_checkpoint_of_all, sign_checkpoint
from eastwest.log.entry import decode
from eastwest.log.note import NoteKey, cosign
from eastwest.log.policy import Policy
from eastwest.log.proof import LogProof
from eastwest.log.verify import verify_log
from eastwest.server.log.fork import refuse_forked
from eastwest.server.log.peer import Claim
from eastwest.server.log.witnesses import load_policy
from eastwest.testing.clock import FakeClock
from eastwest.testing.log import TestSigner


@pytest.fixture
async def ours(tmp_path):
    made = OurLog(tmp_path / "data", FakeClock())
    await made.open()
    yield made
    await made.close()


@pytest.fixture
def watcher(tmp_path, ours):
    made = Watcher(tmp_path, "w.example/1", ours.clock, ours.log.keys)
    yield made
    made.store.close()


def policy_of(ours, *lines, quorum):
    logs = "".join(f"log {key.vkey}\n" for key in ours.log.keys)
    return f"{logs}{''.join(lines)}{quorum}"


BOTH = "group both all w0 w1\nquorum both\n"


async def test_a_checkpoint_gets_both_cosignatures_and_stays_verifiable(ours, watcher):
    await ours.grow(300)
    async with listening(watcher.app) as url:
        text = policy_of(ours, lines_for("w", watcher.keys, url), quorum=BOTH)
        witnesses = ours.witnesses(text)
        await witnesses._round()
        assert len(witnesses.peers) == 1, "two keys behind one address are asked once"
        policy = Policy.parse(text.encode())
        for name in ("checkpoint", "checkpoint.witnessed"):
            head, signatures = policy.open(ours.files.read(name))
            assert (head.size, {s.key for s in signatures}) == (300, set(watcher.keys))
        # A larger tree, with a proof from the one that was signed.
        await ours.grow(500)
        assert policy.open(ours.files.read("checkpoint.witnessed"))[0].size == 300
        await witnesses._round()
        assert policy.open(ours.files.read("checkpoint"))[0].size == 800
        assert (witnesses.warnings(), witnesses.problems(), witnesses.witnessed) == ([], [], 800)
    assert verify_log(ours.files, ours.log.key, list(ours.files.paths())).ok
    assert open_checkpoint_of_all(ours.files.read("checkpoint"), ours.log.keys).size == 800
    # A receipt bears what the witnesses signed, as long as it covers the entry.
    await ours.grow(1)
    proof = LogProof.parse(await ours.log.prove(5))
    assert policy.open(proof.checkpoint.encode())[0].size == 800
    assert LogProof.parse(await ours.log.prove(800)).verify(b"800", ours.log.key).size == 801


async def test_a_restarted_log_remembers_what_was_witnessed_and_asks_on(ours, watcher):
    await ours.grow(10)
    async with listening(watcher.app) as url:
        text = policy_of(ours, lines_for("w", watcher.keys, url), quorum=BOTH)
        await ours.witnesses(text)._round()
        await ours.close()
        ours.clock.advance(1000)
        await ours.open()
        again = ours.witnesses(text)
        assert (again.witnessed, again.is_stale) == (10, True), "a restart does not make it fresh"
        await ours.grow(5)
        await again._round()
        assert (again.witnessed, again.is_stale) == (15, False), "the size came from the witness's 409"


async def test_issuing_never_waits_for_a_witness_that_hangs(ours):
    liar = Liar("slow.example")
    hanging = asyncio.Event()

    async def hang(_request):
        hanging.set()
        await asyncio.Event().wait()

    app = liar.app
    app.router.routes[0].app = lambda scope, receive, send: hang(scope)
    await ours.grow(3)
    async with listening(app) as url:
        witnesses = ours.witnesses(policy_of(ours, lines_for("w", liar.keys, url), quorum="quorum w0\n"))
        running = asyncio.create_task(witnesses.run())
        await hanging.wait()
        assert (await ours.grow(7)).size == 10
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def entries_of(log, kind):
    found = [raw for raw in await log.entries(0, log.size) if raw.startswith(b"{")]
    return [entry.body for entry in map(decode, found) if entry.kind == kind]


async def test_a_lost_quorum_is_told_and_can_close_the_log_until_it_is_back(ours, watcher):
    await ours.grow(3)
    async with listening(watcher.app) as url:
        text = policy_of(ours, lines_for("w", watcher.keys, url), quorum=BOTH)
        witnesses = ours.witnesses(text, witness_stale_after=300, witness_fail_closed_after=900)
        await witnesses._round()
    port = int(url.rsplit(":", 1)[1].strip("/"))
    await witnesses._round()
    assert "cannot be reached" in witnesses.warnings()[0]
    assert await entries_of(ours.log, "witness.quorum_lost") == []
    ours.clock.advance(301)
    await witnesses._round()
    assert any("no quorum" in told for told in witnesses.warnings())
    assert witnesses.problems() == []
    [lost] = await entries_of(ours.log, "witness.quorum_lost")
    assert (lost["size"], lost["missing"], lost["subject"]) == (3, ["w0", "w1"], "spiffe://test.example")
    await witnesses._round()
    assert len(await entries_of(ours.log, "witness.quorum_lost")) == 1, "told once"
    ours.clock.advance(600)
    await witnesses._round()
    assert "witness_fail_closed_after" in witnesses.problems()[0]
    with pytest.raises(LogUnavailable, match="the log waits: no quorum"):
        await ours.grow(1)
    async with listening(watcher.app, port):
        await ours.log.flush()
        await witnesses._round()
    assert (witnesses.problems(), witnesses.warnings()) == ([], [])
    [regained] = await entries_of(ours.log, "witness.quorum_regained")
    assert regained["size"] >= 4
    await ours.grow(1)


async def test_a_cosignature_that_is_repeated_does_not_stay_fresh(ours):
    liar = Liar("repeats.example")
    now = int(ours.clock.now().timestamp())
    liar.answer = lambda _, text: PlainTextResponse(cosign(text, liar.name, liar.signer, now))
    await ours.grow(3)
    async with listening(liar.app) as url:
        witnesses = ours.witnesses(
            policy_of(ours, lines_for("w", liar.keys, url), quorum="quorum w0\n"), witness_stale_after=300
        )
        await witnesses._round()
        ours.clock.advance(299)
        await witnesses._round()
        assert (witnesses.warnings(), round(witnesses.age)) == ([], 299)
        ours.clock.advance(2)
        await witnesses._round()
    assert "it repeats what it signed then" in witnesses.warnings()[0]
    assert "no quorum" in witnesses.warnings()[1]
    [lost] = await entries_of(ours.log, "witness.quorum_lost")
    assert lost["missing"] == ["w0"]


def forged(asked, text):
    return PlainTextResponse(Liar("liar.example").honest(asked, text.replace("\n3\n", "\n4\n")).body.decode())


def wrong_key(asked, text):
    return Liar("liar.example", seed=67).honest(asked, text)


def older(asked, text):
    return Response("1\n", 409, media_type="text/x.tlog.size") if asked.old != 1 else Response("", 500)


def restless(asked, _text):
    return Response(f"{(asked.old + 1) % 3}\n", 409, media_type="text/x.tlog.size")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (forged, "is false"),
        (wrong_key, "keys that the policy does not name"),
        (older, "answered 500"),
        (restless, "names another size each time"),
        (lambda _asked, _text: Response("x\n", 409, media_type="text/x.tlog.size"), "whole number"),
        (lambda _asked, _text: Response("5\n", 409), "answered 409"),
        (lambda _asked, _text: Response(b"\xff" * 70_000), "larger than"),
        (lambda _asked, _text: PlainTextResponse("no", 404), "answered 404"),
        (lambda _asked, _text: PlainTextResponse("no", 403), "answered 403"),
    ],
)
async def test_a_witness_that_lies_is_told_of_and_harms_nothing(ours, watcher, answer, told):
    liar = Liar("liar.example")
    liar.answer = answer
    await ours.grow(3)
    async with listening(watcher.app) as url, listening(liar.app) as lying:
        lines = lines_for("w", watcher.keys, url), lines_for("l", liar.keys, lying)
        text = policy_of(ours, *lines, quorum="group any any w0 l0\nquorum any\n")
        witnesses = ours.witnesses(text)
        await witnesses._round()
        assert told in witnesses.warnings()[0]
        head, signatures = Policy.parse(text.encode()).open(ours.files.read("checkpoint"))
        assert (head.size, {s.key for s in signatures}) == (3, set(watcher.keys)), "nothing of the liar is published"
        assert (await ours.grow(1)).size == 4
    assert len(liar.asked) <= 3


async def test_a_witness_that_forgets_what_it_signed_is_told_of(ours):
    liar = Liar("liar.example")
    await ours.grow(3)
    async with listening(liar.app) as lying:
        witnesses = ours.witnesses(policy_of(ours, lines_for("l", liar.keys, lying), quorum="quorum l0\n"))
        await witnesses._round()
        await ours.grow(3)
        liar.answer = lambda asked, text: (
            Response("1\n", 409, media_type="text/x.tlog.size") if asked.old != 1 else liar.honest(asked, text)
        )
        await witnesses._round()
        assert "it forgets what it signs" in witnesses.warnings()[0]
        assert witnesses.witnessed == 6


def ahead(_asked, _text):
    return Response("99\n", 409, media_type="text/x.tlog.size")


def inconsistent(_asked, _text):
    return PlainTextResponse("another tree", 422)


OTHER_SIZE = sign_checkpoint(Checkpoint(ORIGIN, 99, bytes(32)), TestSigner()).encode()
OTHER_ROOT = sign_checkpoint(Checkpoint(ORIGIN, 2, bytes(32)), TestSigner()).encode()


@pytest.mark.parametrize(
    ("answer", "shown", "claims", "told"),
    [
        (ahead, OTHER_SIZE, "prove", "our own signature stands on a tree of 99 entries"),
        (inconsistent, OTHER_ROOT, "prove", "our own signature stands on another tree of 2 entries"),
        (ahead, None, "stop", "it has signed a tree of 99 entries; it shows no proof"),
        (inconsistent, b"nonsense", "stop", "inconsistent"),
    ],
)
async def test_another_history_stops_the_log_for_good(ours, answer, shown, claims, told):
    liar = Liar("liar.example")
    liar.answer, liar.shown = answer, shown
    await ours.grow(3)
    async with listening(liar.app) as lying:
        text = policy_of(ours, lines_for("l", liar.keys, lying), quorum="quorum l0\n")
        witnesses = ours.witnesses(text, witness_claims=claims)
        await asyncio.wait_for(witnesses.run(), 20)
    before = ours.files.read("checkpoint")
    assert told in witnesses.problems()[0]
    with pytest.raises(LogUnavailable, match="the log is stopped"):
        await ours.grow(1)
    with pytest.raises(Corrupt):
        await ours.log.flush()
    assert ours.files.read("checkpoint") == before
    [split] = await entries_of(ours.log, "log.split_view")
    assert (split["size"], split["witness"]) == (3, "l0")
    assert ("theirs" in split) == (shown in (OTHER_SIZE, OTHER_ROOT))
    evidence = ours.paths.log_fork.read_text()
    assert told in evidence
    assert shown is None or shown.decode() in evidence
    with pytest.raises(FailedPrecondition, match="another history"):
        refuse_forked(ours.paths)


async def test_a_claim_without_proof_stops_nothing_where_proof_is_asked_for(ours):
    liar = Liar("liar.example")
    liar.answer, liar.shown = ahead, sign_checkpoint(Checkpoint(ORIGIN, 99, bytes(32)), TestSigner(b"x" * 32)).encode()
    await ours.grow(3)
    async with listening(liar.app) as lying:
        text = policy_of(ours, lines_for("l", liar.keys, lying), quorum="quorum l0\n")
        witnesses = ours.witnesses(text, witness_claims="prove")
        await witnesses._round()
        # Nor does a checkpoint of ours that fits.
        liar.shown = ours.files.read("checkpoint")
        await witnesses._round()
    assert "it has signed a tree of 99 entries" in witnesses.warnings()[0]
    assert not ours.paths.log_fork.exists()
    assert (await ours.grow(1)).size == 4


@pytest.mark.parametrize("claims", ["stop", "prove"])
async def test_a_witness_that_was_brought_a_newer_checkpoint_of_ours_stops_nothing(ours, claims, monkeypatch):
    """A file is out before the log knows it: then whoever reads it quickly could have made the log stop for good."""
    liar = Liar("quick.example")
    await ours.grow(3)

    def disk_full(*_):
        raise Unavailable("no space left")

    async with listening(liar.app) as url:
        text = policy_of(ours, lines_for("l", liar.keys, url), quorum="quorum l0\n")
        witnesses = ours.witnesses(text, witness_claims=claims)
        ours.log._mark = ours.folder / "mark"
        with monkeypatch.context() as patched, pytest.raises(Unavailable):
            patched.setattr("eastwest.store.log.write_mark", disk_full)
            await ours.grow(1)
        assert (ours.log.signed[0].size, open_checkpoint(ours.files.read("checkpoint"), ours.log.key).size) == (3, 4)
        liar.shown = ours.files.read("checkpoint")
        liar.answer = lambda *_: Response("4\n", 409, media_type="text/x.tlog.size")
        await witnesses._round()
        assert (witnesses.problems(), ours.paths.log_fork.exists()) == ([], False)
        # And where the log has gone on by the time that the claim is weighed.
        await ours.grow(1)
        await witnesses._weigh(Claim("l0", "it has signed a tree of 4 entries", liar.shown, 4))
    assert (witnesses.problems(), (await ours.grow(1)).size) == ([], 6)


@pytest.mark.parametrize("seconds", [1 << 40, (1 << 63) - 1])
async def test_a_witness_s_time_that_no_calendar_has_does_not_keep_the_server_from_starting(ours, seconds):
    liar = Liar("liar.example")
    liar.answer = lambda _, text: PlainTextResponse(cosign(text, liar.name, liar.signer, seconds))
    await ours.grow(3)
    async with listening(liar.app) as url:
        text = policy_of(ours, lines_for("l", liar.keys, url), quorum="quorum l0\n")
        await ours.witnesses(text)._round()
        await ours.close()
        await ours.open()
        again = ours.witnesses(text)
    assert (again.witnessed, again.age) == (3, 0.0)


async def test_a_policy_for_our_log_is_checked_before_anything_runs(ours, watcher, tmp_path):
    file = tmp_path / "p"
    w = lines_for("w", watcher.keys, "https://w.example/")
    file.write_text(policy_of(ours, w, quorum=BOTH))
    assert load_policy(file, ours.log.keys).quorum == "both"
    stranger = NoteKey.of("o.example", TestSigner(b"z" * 32)).vkey
    for text, told in (
        (f"log {stranger}\n{w}{BOTH}", "none of its logs is this one"),
        (policy_of(ours, lines_for("w", watcher.keys, ""), quorum=BOTH), "no quorum"),
    ):
        file.write_text(text)
        with pytest.raises(InvalidInput, match=told):
            load_policy(file, ours.log.keys)
    with pytest.raises(InvalidInput, match="cannot be read"):
        load_policy(tmp_path / "none", ours.log.keys)
    for url in (
        "http://w.example/",
        "ftp://w.example/",
        "https://w.example/?q",
        "https://",
        "https://a:b@w/",
        "https://w:x/",
    ):
        with pytest.raises(InvalidInput, match="is not"):
            ours.witnesses(policy_of(ours, lines_for("w", watcher.keys, url), quorum=BOTH))
