"""A log on disk, witnesses on real ports, and one that lies."""

import asyncio
import ssl
from contextlib import asynccontextmanager

import msgspec
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from eastwest.log.note import NoteKey, cosign
from eastwest.log.policy import Policy
from eastwest.log.witness import AddCheckpoint, origin_hash
from eastwest.pki.signer import SoftwareNoteSigner
from eastwest.server.config import LogSettings, ServerPaths
from eastwest.server.journal import Journal
from eastwest.server.log.witnesses import Witnesses
from eastwest.server.public.https import PublicListener
from eastwest.server.witness.http import witness_app
from eastwest.server.witness.service import WitnessService
from eastwest.store.database import Database
from eastwest.store.log import SqliteLog
from eastwest.store.log_files import LogDirectory
from eastwest.store.witness import WitnessStore
from eastwest.testing.log import TestSigner

ORIGIN = "test.example/eastwest-log"
DOMAIN = "spiffe://test.example"


def quantum(seed):
    return SoftwareNoteSigner(MLDSA44PrivateKey.from_seed_bytes(bytes([seed]) * 32))


class OurLog:
    """The log that is watched."""

    def __init__(self, folder, clock):
        self.folder, self.clock = folder, clock
        self.paths = ServerPaths(folder)
        self.paths.home.mkdir(parents=True)
        self.files = LogDirectory(self.paths.log)

    async def open(self):
        self.database = Database.open(self.paths.database, trust_domain="test.example", clock=self.clock)
        self.log = await SqliteLog.open(
            self.database, self.paths.log, origin=ORIGIN, signer=TestSigner(), clock=self.clock, second=quantum(9)
        )
        self.journal = Journal(self.log, self.clock)

    async def close(self):
        await self.log.close()
        await self.database.close()

    async def grow(self, count):
        await self.log.append([f"{self.log.size + i}".encode() for i in range(count)])
        return await self.log.flush()

    def witnesses(self, policy, **settings):
        settings = msgspec.structs.replace(LogSettings(witness_policy="p"), **settings)
        parsed = Policy.parse(policy.encode())
        trust = ssl.create_default_context()
        return Witnesses(parsed, settings, self.log, self.files, self.journal, self.clock, self.paths, trust, DOMAIN)


class Watcher:
    """One of our witnesses on a port."""

    def __init__(self, folder, name, clock, keys, seed=1):
        self.name = name
        self.signers = (TestSigner(bytes([seed]) * 32), quantum(seed))
        self.keys = [NoteKey.of(name, signer, cosigner=True) for signer in self.signers]
        self.store = WitnessStore(folder / f"{seed}.db")
        self.service = WitnessService(name, self.signers, {ORIGIN: keys}, self.store, clock)

    @property
    def app(self):
        return witness_app(self.service)


class Liar:
    """Signs with its own key whatever it is shown, and answers ``add-checkpoint`` as it is told to."""

    def __init__(self, name, seed=66):
        self.name, self.signer = name, TestSigner(bytes([seed]) * 32)
        self.keys = [NoteKey.of(name, self.signer, cosigner=True)]
        self.answer = self.honest
        self.shown = None
        self.asked = []

    def honest(self, asked, text):
        return PlainTextResponse(cosign(text, self.name, self.signer, 1_795_000_000))

    @property
    def app(self):
        async def add(request):
            asked = AddCheckpoint.parse(await request.body())
            self.asked.append(asked.old)
            return self.answer(asked, asked.note.decode().partition("\n\n")[0] + "\n")

        async def checkpoint(request):
            assert request.path_params["origin"] == origin_hash(ORIGIN)
            return Response(self.shown) if self.shown is not None else PlainTextResponse("no", 404)

        routes = [Route("/add-checkpoint", add, methods=["POST"]), Route("/{origin}/checkpoint", checkpoint)]
        return Starlette(routes=routes)


@asynccontextmanager
async def listening(app, port=0):
    """The URL of an application on loopback."""
    listener = PublicListener(app, "test")
    url = f"http://127.0.0.1:{listener.bind('127.0.0.1', port)}/"
    task = asyncio.create_task(listener.run())
    try:
        yield url
    finally:
        listener.stop()
        await task


def lines_for(name, keys, url):
    return "".join(f"witness {name}{i} {key.vkey} {url}\n" for i, key in enumerate(keys))
