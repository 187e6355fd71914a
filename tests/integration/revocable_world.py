"""An authority that issues revocable certificates: a real store, a log in memory, and a clock to move."""

from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from eastwest.entropy import SystemEntropy
from eastwest.issuance.issuer import Issuer
from eastwest.issuance.request import Instance, X509Request
from eastwest.log.entry import decode
from eastwest.pki.csr import make_csr
from eastwest.pki.profile import LifetimeConfig, Profile, ProfileConfig
from eastwest.pki.revocation import Reason, RevocationUrls, shard_of
from eastwest.pki.signer import KeyAlgorithm, generate_private_key
from eastwest.server.journal import Journal
from eastwest.server.public.revocation import Revocations
from eastwest.store.database import Database
from eastwest.store.revocation import CertificateQuery, SqliteRevocations
from eastwest.testing import FakeClock, TestCA
from eastwest.testing.log import MemoryLog

URLS = RevocationUrls("http://pki.saas.example/devices")
DEVICE = Profile.from_config(
    ProfileConfig("device", ("est", "spire-api"), ("ec-p256",), LifetimeConfig("90d", "365d"), revocation="crl")
)
KEY = generate_private_key(KeyAlgorithm.EC_P256)


class World:
    """An authority with a real store, a real log in memory, and a clock to move."""

    def __init__(self, database, clock):
        self.clock = clock
        self.ca = TestCA(now=clock.now())
        self.authority = self.ca.new_authority(lifetime=timedelta(days=2000))
        self.authorities = {self.authority.key_id: self.authority}
        self.log = MemoryLog()
        self.store = SqliteRevocations(database)
        self.issuer = Issuer(
            {"": self.authority},
            self.ca.jwt_key,
            self.log,
            clock,
            SystemEntropy(),
            Instance("one", "0"),
            [DEVICE],
            revocation=URLS,
            register=self.store,
        )
        self.revocations = self.restarted()

    def restarted(self):
        async def authorities():
            return self.authorities

        return Revocations(
            self.store, Journal(self.log, self.clock), authorities, URLS, self.clock, timedelta(hours=24)
        )

    async def issue(self, path="/edge/pump-1", profile="device", ttl=None):
        spiffe_id = self.ca.trust_domain.id(path)
        wanted = X509Request(
            csr_der=make_csr(KEY, spiffe_id),
            spiffe_id=spiffe_id,
            profile=profile,
            door="spire-api",
            caller="unix:uid:0",
            node="spiffe://saas.example/spire/agent/x",
            entry_id="e-1",
            ttl=ttl,
        )
        [svid] = await self.issuer.issue_x509([wanted])
        return svid

    async def find(self, **query):
        return await self.store.find(CertificateQuery(now=self.clock.now(), **query))

    async def revoke(self, *svids, reason=Reason.KEY_COMPROMISE):
        found = [one for svid in svids for one in await self.find(serial=svid.serial)]
        return await self.revocations.revoke(found, reason, "unix:uid:0")

    async def crl(self, svid):
        found = await self.revocations.crl(self.authority.key_id, shard_of(svid.not_after))
        return x509.load_der_x509_crl(found.der)

    async def logged(self, kind):
        entries = [decode(raw) for raw in await self.log.entries(0, self.log.size)]
        return [entry.body for entry in entries if entry.kind == kind]

    def request(self, svid, algorithm=None, nonce=None):
        leaf = x509.load_der_x509_certificate(svid.chain[0])
        builder = ocsp.OCSPRequestBuilder().add_certificate(
            leaf, self.authority.certificate, algorithm or hashes.SHA256()
        )
        if nonce is not None:
            builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
        return builder.build().public_bytes(Encoding.DER)

    async def status(self, svid, **how):
        reply = await self.revocations.answer(self.request(svid, **how))
        return ocsp.load_der_ocsp_response(reply.der)


@asynccontextmanager
async def new_world(path, clock=None):
    clock = clock or FakeClock()
    database = Database.open(path / "server.db", trust_domain="saas.example", clock=clock)
    try:
        yield World(database, clock)
    finally:
        await database.close()


class NowClock(FakeClock):
    """For stock tools, which know only the present."""

    def __init__(self):
        super().__init__(datetime.now(UTC))
