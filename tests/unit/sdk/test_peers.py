"""Who is at the other end: each trust domain's roots speak for that trust domain alone."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from envoy_mesh import TD, Ca, spiffe

from eastwest.errors import Unauthenticated
from eastwest.sdk.peers import Peers, chain_of_pem, pem, verify_peer
from eastwest.spiffe.id import TrustDomain

OURS, FRIENDS = Ca(), Ca("friend.test")
BUNDLES = {
    TrustDomain(TD): (OURS.certificate.public_bytes(Encoding.DER),),
    TrustDomain("friend.test"): (FRIENDS.certificate.public_bytes(Encoding.DER),),
}
WEB, FRIEND = spiffe("web"), spiffe("x", "friend.test")


def chain(ca: Ca, *uris: str, **options) -> tuple[bytes, ...]:
    certificates = x509.load_pem_x509_certificates(ca.identity(*uris, **options).chain)
    return tuple(certificate.public_bytes(Encoding.DER) for certificate in certificates)


def now() -> datetime:
    return datetime.now(UTC)


@pytest.mark.parametrize(("ca", "spiffe_id"), [(OURS, WEB), (FRIENDS, FRIEND)])
def test_a_workload_of_each_trust_domain(ca, spiffe_id):
    shown = chain(ca, spiffe_id)
    peer = verify_peer(shown, BUNDLES, now())
    assert str(peer.id) == spiffe_id
    assert peer.certificate == x509.load_der_x509_certificate(shown[0]).fingerprint(_sha256()).hex()


@pytest.mark.parametrize(
    ("ca", "uris"),
    [
        (FRIENDS, [WEB]),  # signed by an authority that speaks for others
        (OURS, [FRIEND]),
        (OURS, [WEB, spiffe("admin")]),
        (FRIENDS, [FRIEND, WEB]),
        (FRIENDS, [WEB, FRIEND]),
        (Ca(), [WEB]),  # an authority of the same name
        (Ca("stranger.test"), [spiffe("x", "stranger.test")]),
        (OURS, [f"spiffe://{TD}"]),
        (OURS, ["https://mesh.test/web"]),
        (OURS, [f"spiffe://{TD}/web?admin"]),
    ],
)
def test_what_proves_nothing(ca, uris):
    with pytest.raises(Unauthenticated):
        verify_peer(chain(ca, *uris), BUNDLES, now())


def test_no_certificate_proves_nothing():
    with pytest.raises(Unauthenticated):
        verify_peer((), BUNDLES, now())


def test_a_remembered_chain_is_not_believed_for_ever():
    peers, shown = Peers(), chain(OURS, WEB, not_after=timedelta(hours=1))
    assert str(peers.verify(shown, BUNDLES, now()).id) == WEB
    assert str(peers.verify(shown, BUNDLES, now()).id) == WEB
    with pytest.raises(Unauthenticated, match="ended"):
        peers.verify(shown, BUNDLES, now() + timedelta(hours=2))
    without = {domain: roots for domain, roots in BUNDLES.items() if domain.name != TD}
    with pytest.raises(Unauthenticated, match="not taken here"):
        peers.verify(shown, without, now())


def test_pem_as_servers_give_it():
    shown = chain(OURS, WEB)
    assert chain_of_pem([pem(der) for der in shown]) == shown
    for text in ("", "x", "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----"):
        with pytest.raises(Unauthenticated):
            verify_peer(chain_of_pem([text]), BUNDLES, now())
    with pytest.raises(Unauthenticated):
        chain_of_pem([pem(shown[0])] * 9)


def _sha256():
    from cryptography.hazmat.primitives.hashes import SHA256

    return SHA256()
