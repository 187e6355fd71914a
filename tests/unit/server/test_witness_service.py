"""Our witness over HTTP: the statuses of the specification, bounds, races, and evidence of a fork."""

import asyncio
import json

import httpx
import pytest
from typer.testing import CliRunner
from witness_world import ORIGIN, OurLog, Watcher, listening

from eastwest.cli.witness import app as command
from eastwest.errors import AlreadyExists, FailedPrecondition, InvalidInput
from eastwest.log.checkpoint import Checkpoint, open_any_checkpoint, sign_checkpoint
from eastwest.log.note import NoteKey, sign_note, verified_signatures
from eastwest.log.proof import consistency_proof
from eastwest.log.tiles import TileReader
from eastwest.log.witness import AddCheckpoint, origin_hash
from eastwest.server.witness.config import WitnessConfig
from eastwest.server.witness.run import init_witness, open_store
from eastwest.testing.clock import FakeClock
from eastwest.testing.log import TestSigner


@pytest.fixture
async def ours(tmp_path):
    made = OurLog(tmp_path / "data", FakeClock())
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def witness(tmp_path, ours):
    made = Watcher(tmp_path, "w.example/1", ours.clock, ours.log.keys)
    async with listening(made.app) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        made.client = client
        yield made
    made.store.close()


def request(ours, old, note=None):
    head, own = ours.log.signed
    node = TileReader(ours.files, head.size).node
    return AddCheckpoint(old, tuple(consistency_proof(old, head.size, node)), note or own.encode()).encode()


async def test_what_is_new_and_consistent_is_signed_and_shown(ours, witness):
    assert (await witness.client.get(f"/{origin_hash(ORIGIN)}/checkpoint")).status_code == 404
    await ours.grow(7)
    first = await witness.client.post("/add-checkpoint", content=request(ours, 0))
    assert first.status_code == 200
    head, own = ours.log.signed
    # The text and our own signatures, with the answer put after them, are one note that all keys have signed.
    note = (own + first.text).encode()
    found = verified_signatures(note, [*ours.log.keys, *witness.keys])[1]
    assert {signature.key for signature in found} == {*ours.log.keys, *witness.keys}
    assert all(signature.seconds == int(ours.clock.now().timestamp()) for signature in found[1:])
    shown = await witness.client.get(f"/{origin_hash(ORIGIN)}/checkpoint")
    assert (shown.content, shown.headers["content-type"]) == (note, "text/plain; charset=utf-8")
    assert open_any_checkpoint(shown.content, ours.log.keys) == head
    await ours.grow(400)
    stale = await witness.client.post("/add-checkpoint", content=request(ours, 0))
    assert (stale.status_code, stale.text, stale.headers["content-type"]) == (409, "7\n", "text/x.tlog.size")
    assert (await witness.client.post("/add-checkpoint", content=request(ours, 7))).status_code == 200
    assert (await witness.client.post("/add-checkpoint", content=request(ours, 407))).status_code == 200, "again"


async def test_what_is_not_ours_or_too_much_is_refused(ours, witness):
    await ours.grow(3)
    other = sign_checkpoint(Checkpoint("o.example", 1, bytes(32)), TestSigner()).encode()
    forged = sign_checkpoint(Checkpoint(ORIGIN, 3, bytes(32)), TestSigner(b"z" * 32)).encode()
    for body, status in (
        (request(ours, 0, other), 404),
        (request(ours, 0, forged), 403),
        (b"old 4\n\n" + ours.log.signed[1].encode(), 400),
        (b"junk", 400),
        (b"old 0\n" + b"A" * 200_000, 413),
    ):
        assert (await witness.client.post("/add-checkpoint", content=body)).status_code == status
    assert witness.store.all() == []
    assert (await witness.client.get("/add-checkpoint")).status_code == 405
    assert (await witness.client.get("/../witness.db")).status_code == 404


async def test_of_many_at_once_each_is_signed_in_order_or_told_to_come_back(ours, witness):
    bodies = []
    for _ in range(6):
        await ours.grow(50)
        bodies.append((ours.log.signed[0].size, request(ours, 0)))
    answers = await asyncio.gather(*(witness.client.post("/add-checkpoint", content=body) for _, body in bodies * 3))
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) <= {200, 409}
    winners = {size for (size, _), status in zip(bodies * 3, statuses, strict=True) if status == 200}
    assert winners == {witness.store.last(ORIGIN).seen.size}, "from nothing, one tree only was signed"


async def test_a_second_history_is_not_signed_and_kept_as_evidence(ours, witness):
    await ours.grow(5)
    await witness.client.post("/add-checkpoint", content=request(ours, 0))
    twins = [sign_checkpoint(Checkpoint(ORIGIN, 5, bytes([n]) * 32), TestSigner()).encode() for n in range(2)]
    for old, twin in zip((5, 0), twins, strict=True):
        # Whoever has it may bring it again and again, dressed up: evidence of another fork still has its place.
        for number in range(3):
            stranger = b"".join([sign_note("x\n", f"x{n}.example", TestSigner()).encode()[3:] for n in range(number)])
            answer = await witness.client.post(
                "/add-checkpoint", content=AddCheckpoint(old, (), twin + stranger).encode()
            )
            assert answer.status_code == (422 if old else 409), answer.text
    first, second = witness.store.conflicts()
    assert [first.note, second.note] == twins
    assert open_any_checkpoint(first.last, ours.log.keys).size == 5


def test_a_witness_is_made_whole_and_refuses_to_forget(tmp_path):
    made = init_witness(tmp_path / "w", "w.example/1", "127.0.0.1", 0)
    config = WitnessConfig.load(tmp_path / "w" / "witness.toml")
    assert (config.file.name, config.logs) == ("w.example/1", {})
    assert [
        NoteKey.parse((tmp_path / "w" / file).read_text()) for file in ("witness.vkey", "witness.ml-dsa-44.vkey")
    ] == [*made.vkeys]
    assert (tmp_path / "w" / "keys").stat().st_mode & 0o077 == 0
    with pytest.raises(AlreadyExists):
        init_witness(tmp_path / "w", "w.example/1", "127.0.0.1", 0)
    (tmp_path / "w" / "witness.db").unlink()
    with pytest.raises(FailedPrecondition, match="is gone"):
        open_store(config)


KEY = NoteKey.of(ORIGIN, TestSigner())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('name = "a b"\n', "spaces"),
        ('name = "w"\naddress = "0.0.0.0"\n', "certificate is not set"),
        ('name = "w"\ncertificate = "c"\n', "belong together"),
        ('name = "w"\n[[logs]]\nvkeys = []\n', "needs 1 to 8 vkeys"),
        ('name = "w"\n[[logs]]\nvkeys = ["x"]\n', "log 1: a verifier key"),
        (f'name = "w"\n[[logs]]\nvkeys = ["{KEY.vkey}"]\n[[logs]]\nvkeys = ["{KEY.vkey}"]\n', "there twice"),
        (f'name = "w"\n[[logs]]\nvkeys = ["{NoteKey.of("w", TestSigner(), cosigner=True).vkey}"]\n', "signs no log"),
        ('name = "w"\nnmae = "w"\n', "unknown field"),
        ("name", "not TOML"),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_refused(tmp_path, text, told):
    (tmp_path / "witness.toml").write_text(text)
    with pytest.raises(InvalidInput, match=told):
        WitnessConfig.load(tmp_path / "witness.toml")


async def test_status_and_check_tell_one_history_from_two(ours, tmp_path):
    def call(*words, code=0):
        result = CliRunner().invoke(command, [str(word) for word in words], catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result.output

    made = init_witness(tmp_path / "w", "w.example/1", "127.0.0.1", 0)
    toml = tmp_path / "w" / "witness.toml"
    vkeys = json.dumps([key.vkey for key in ours.log.keys])
    toml.write_text(f"{toml.read_text()}\n[[logs]]\nvkeys = {vkeys}\n")
    assert "nothing signed yet" in await asyncio.to_thread(call, "status", "--config", toml)
    await ours.grow(5)
    kept, vkey = tmp_path / "kept", tmp_path / "vkey"
    kept.write_bytes(ours.files.read("checkpoint"))
    vkey.write_text(ours.log.key.vkey)
    await ours.grow(300)
    one = await asyncio.to_thread(call, "check", kept, ours.paths.log, "--vkey", vkey)
    assert "the tree of 5 entries is the beginning of that of 305" in one
    # The other history, from the same key.
    twin = tmp_path / "twin"
    twin.write_text(sign_checkpoint(Checkpoint(ORIGIN, 5, bytes(32)), TestSigner()))
    two = await asyncio.to_thread(call, "check", kept, twin, "--vkey", vkey, "--json", code=1)
    assert json.loads(two)["consistent"] is False
    assert "TWO HISTORIES" in await asyncio.to_thread(call, "check", twin, ours.paths.log, "--vkey", vkey, code=1)
    with pytest.raises(InvalidInput, match="only tiles"):
        later = tmp_path / "later"
        later.write_bytes(ours.files.read("checkpoint"))
        await asyncio.to_thread(call, "check", kept, later, "--vkey", vkey)
    store = open_store(WitnessConfig.load(toml))
    service = Watcher(tmp_path, "w.example/1", ours.clock, ours.log.keys).service
    service._store.close()
    service._store = store
    assert service.add_checkpoint(request(ours, 0)).status == 200
    big = sign_checkpoint(Checkpoint(ORIGIN, 305, bytes(32)), TestSigner()).encode()
    assert service.add_checkpoint(AddCheckpoint(305, (), big).encode()).status == 422
    store.close()
    status = json.loads(await asyncio.to_thread(call, "status", "--config", toml, "--json", code=1))
    assert (status["logs"][0]["size"], status["logs"][0]["conflicts"]) == (305, 1)
    assert status["conflicts"][0]["checkpoint"].encode() == big
    assert len(made.vkeys) == 2
