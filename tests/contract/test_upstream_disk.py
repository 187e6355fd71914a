"""The disk upstream: corporate CAs of every kind in files."""

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from eastwest.errors import FailedPrecondition, InvalidInput, Unavailable
from eastwest.pki.upstream import UpstreamContext
from eastwest.process.plugins import UPSTREAM_AUTHORITIES, load_plugin
from eastwest.spiffe.id import TrustDomain
from eastwest.testing import FakeClock, UpstreamContract
from eastwest.testing.clock import START
from eastwest.testing.upstreams import new_signer


def corporate_ca(name, key, *, above=None, path_length=None, now=START):
    """A CA as companies have them: no SPIFFE ID in it. ``above``: (certificate, key) of its issuer, or a root."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer, issuer_key = (above[0].subject, above[1]) if above else (subject, key)
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1000))
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, None if isinstance(issuer_key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    )


def write_pem(path, *certificates):
    path.write_bytes(b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates))
    return str(path)


def write_key(path, key, encryption=None):
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()))
    path.chmod(0o600)
    return str(path)


def open_upstream(options):
    context = UpstreamContext(trust_domain=TrustDomain.parse("td.test"), clock=FakeClock(), directory="/nonexistent")
    return load_plugin(UPSTREAM_AUTHORITIES, "disk", options, context, "server.toml: upstreams.disk")


class TestRoot(UpstreamContract):
    def new_key(self):
        return ec.generate_private_key(ec.SECP256R1())

    def now(self):
        return START

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path):
        key = self.new_key()
        self.options = {
            "cert_file": write_pem(tmp_path / "ca.pem", corporate_ca("Root", key)),
            "key_file": write_key(tmp_path / "ca.key", key),
        }

    async def make_upstream(self):
        return open_upstream(self.options)

    async def break_upstream(self):
        # A directory in place of the file: there, and not readable.
        path = Path(self.options["cert_file"])
        path.unlink()
        path.mkdir()


class TestRsaRoot(TestRoot):
    def new_key(self):
        return rsa.generate_private_key(65537, 2048)


class TestEd25519Root(TestRoot):
    def new_key(self):
        return ed25519.Ed25519PrivateKey.generate()


class TestIntermediateWithEncryptedKey(UpstreamContract):
    path_length = 1
    secrets = ("correct horse",)

    def now(self):
        return START

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path):
        root_key, key = rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())
        root = corporate_ca("Root", root_key)
        middle = corporate_ca("Middle", key, above=(root, root_key), path_length=2)
        (tmp_path / "pass").write_text("correct horse\n")
        (tmp_path / "pass").chmod(0o600)
        self.options = {
            "cert_file": write_pem(tmp_path / "ca.pem", middle),
            "key_file": write_key(tmp_path / "ca.key", key, BestAvailableEncryption(b"correct horse")),
            "key_passphrase_file": str(tmp_path / "pass"),
            "bundle_file": write_pem(tmp_path / "roots.pem", root),
        }

    make_upstream = TestRoot.make_upstream
    break_upstream = TestRoot.break_upstream

    async def test_the_chain_holds_the_intermediate(self):
        answer = await (await self.make_upstream()).mint(self.request(new_signer()))
        assert len(answer.chain) == 2

    async def test_a_ca_with_no_room_below_it_is_refused(self):
        upstream = await self.make_upstream()
        await self.expect_refusal(upstream.mint(self.request(new_signer(), path_length=2)), FailedPrecondition)


@pytest.fixture
def root_options(tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    return {
        "cert_file": write_pem(tmp_path / "ca.pem", corporate_ca("Root", key)),
        "key_file": write_key(tmp_path / "ca.key", key),
    }


async def test_renewed_files_are_used_at_once(root_options, tmp_path):
    upstream = open_upstream(root_options)
    (before,) = await upstream.roots()
    key = ec.generate_private_key(ec.SECP256R1())
    write_key(tmp_path / "ca.key", key)
    # Between the two renames certificate and key do not agree: nothing is signed by mistake.
    with pytest.raises(FailedPrecondition, match="do not belong together"):
        await upstream.mint(UpstreamContract().request(new_signer()))
    write_pem(tmp_path / "ca.pem", corporate_ca("Root 2", key))
    (after,) = await upstream.roots()
    assert before != after
    assert (await upstream.mint(UpstreamContract().request(new_signer()))).roots == (after,)


def test_files_in_disorder_are_told_at_start(root_options, tmp_path):
    other = ec.generate_private_key(ec.SECP256R1())
    root = corporate_ca("Other root", other)
    middle = corporate_ca("Middle", other, above=(root, other))
    cases = [
        ({"cert_file": str(tmp_path / "none.pem")}, "cert_file does not exist"),
        ({"key_file": str(tmp_path / "none.key")}, "key_file does not exist"),
        ({"cert_file": write_pem(tmp_path / "other.pem", root)}, "do not belong together"),
        ({"cert_file": root_options["key_file"]}, "no PEM certificates"),
        ({"key_passphrase_env": "EASTWEST_TEST_UNSET"}, "is not set"),
        (
            {
                "cert_file": write_pem(tmp_path / "middle.pem", middle),
                "key_file": write_key(tmp_path / "middle.key", other),
            },
            "root is not given",
        ),
    ]
    for changed, sentence in cases:
        with pytest.raises((FailedPrecondition, InvalidInput, Unavailable), match=sentence):
            open_upstream(root_options | changed)


def test_a_key_that_others_can_read_is_refused(root_options):
    Path(root_options["key_file"]).chmod(0o644)
    with pytest.raises(FailedPrecondition, match=r"key_file is open to other users"):
        open_upstream(root_options)


def test_a_damaged_key_is_not_quoted(root_options):
    path = Path(root_options["key_file"])
    secret = path.read_text().splitlines()[1]
    path.write_text(path.read_text().replace(secret, secret[:-5]))
    with pytest.raises(FailedPrecondition, match="holds no private key") as caught:
        open_upstream(root_options)
    assert secret[:16] not in str(caught.value)


async def test_a_ca_that_is_too_weak_is_not_used(tmp_path):
    key = rsa.generate_private_key(65537, 1024)
    upstream = open_upstream(
        {
            "cert_file": write_pem(tmp_path / "weak.pem", corporate_ca("Weak", key)),
            "key_file": write_key(tmp_path / "weak.key", key),
        }
    )
    with pytest.raises(FailedPrecondition):
        await upstream.mint(UpstreamContract().request(new_signer()))
