"""What an agent thinks of the ground that its certificates stand on."""

from datetime import timedelta

import pytest
from cryptography import x509

from eastwest.agent.taint import Ground, Standing
from eastwest.entropy import SystemEntropy, serial_numbers
from eastwest.pki.ca import cross_certify
from eastwest.spiffe.bundle import Bundle, X509Authority
from eastwest.spiffe.id import TrustDomain
from eastwest.testing.ca import TestCA
from eastwest.testing.clock import START

TD = TrustDomain("saas.example")
ONE, OTHER = TestCA(), TestCA()
CHAIN = ONE.svid("/shop")[0].chain


def bundle(*roots: X509Authority) -> Bundle:
    return Bundle(TD, roots, sequence=1)


def issuing_id(chain: tuple[bytes, ...]) -> bytes:
    extensions = x509.load_der_x509_certificate(chain[1]).extensions
    return extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest


@pytest.mark.parametrize(
    ("roots", "standing"),
    [
        ([X509Authority(ONE.root)], Standing.FINE),
        ([X509Authority(OTHER.root), X509Authority(ONE.root)], Standing.FINE),
        ([X509Authority(ONE.root, tainted=True)], Standing.TAINTED),
        ([X509Authority(OTHER.root), X509Authority(ONE.root, tainted=True)], Standing.TAINTED),
        ([X509Authority(OTHER.root)], Standing.DISTRUSTED),
        ([X509Authority(OTHER.root, tainted=True)], Standing.DISTRUSTED),
    ],
)
def test_by_the_root(roots: list[X509Authority], standing: Standing) -> None:
    assert Ground(bundle(*roots), ()).standing(CHAIN, START) is standing


def test_by_the_issuing_ca() -> None:
    trusted = bundle(X509Authority(ONE.root))
    assert Ground(trusted, [issuing_id(CHAIN)]).standing(CHAIN, START) is Standing.TAINTED
    assert Ground(trusted, [b"another"]).standing(CHAIN, START) is Standing.FINE


def test_one_that_has_only_ended_is_for_others_to_renew() -> None:
    late = START + timedelta(days=2)
    assert Ground(bundle(X509Authority(ONE.root)), ()).standing(CHAIN, late) is Standing.FINE


def test_a_way_to_a_lasting_root_is_enough() -> None:
    [serial] = serial_numbers(SystemEntropy(), 1)
    crossed = cross_certify(ONE.root, OTHER.root, OTHER.root_signer, TD, serial, START)
    roots = (X509Authority(ONE.root, tainted=True), X509Authority(OTHER.root))
    assert Ground(bundle(*roots), ()).standing((*CHAIN, crossed), START) is Standing.FINE
    assert Ground(bundle(*roots), ()).standing(CHAIN, START) is Standing.TAINTED


def test_verdicts_hold_as_long_as_the_ground_is_the_same() -> None:
    ground = Ground(bundle(X509Authority(ONE.root)), [b"x"])
    assert ground.same_as(Bundle(TD, (X509Authority(ONE.root),), sequence=9), {b"x"})
    assert not ground.same_as(bundle(X509Authority(ONE.root, tainted=True)), {b"x"})
    assert not ground.same_as(bundle(X509Authority(ONE.root)), ())
    assert not ground.is_clean
    assert Ground(bundle(X509Authority(ONE.root)), ()).is_clean
