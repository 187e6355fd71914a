"""Batches whose signing requests are checked in other processes: the same certificates and the same refusals."""

import pytest

from eastwest.errors import Error, PermissionDenied, Unavailable
from eastwest.issuance.issuer import CHECKED_BESIDE_FROM, Issuer
from eastwest.issuance.request import Instance, X509Request
from eastwest.pki.csr import MAX_CSR_BYTES, CsrDefect, InvalidCsr, make_csr
from eastwest.pki.profile import Door
from eastwest.pki.signer import KeyAlgorithm, UnsupportedKey, generate_private_key
from eastwest.process.csr_workers import CsrWorkers
from eastwest.spiffe.id import TrustDomain
from eastwest.testing import FakeClock, SeededEntropy, TestCA
from eastwest.testing.log import MemoryLog

CA = TestCA()
ID = CA.trust_domain.id("/prod/billing")
CSR = make_csr(generate_private_key(KeyAlgorithm.EC_P256), ID)


@pytest.fixture
async def workers():
    workers = CsrWorkers(1)
    workers.start()
    yield workers
    await workers.close()


class Counting:
    """Passes on to workers, and counts what is asked."""

    def __init__(self, workers):
        self.workers = workers
        self.asked = 0

    async def check(self, requests):
        self.asked += len(requests)
        return await self.workers.check(requests)


def request(**changes):
    return X509Request(**{"csr_der": CSR, "spiffe_id": ID, "door": Door.SPIRE_API, "caller": "test"} | changes)


def issuer(log, checks=None):
    return Issuer({"": CA.authority}, CA.jwt_key, log, FakeClock(), SeededEntropy(), Instance("a", "0"), checks=checks)


async def test_answers_and_entries_are_the_same_with_and_without(workers):
    batch = [request() for _ in range(CHECKED_BESIDE_FROM)]
    batch[1] = request(csr_der=CSR[:-1] + bytes([CSR[-1] ^ 1]))
    batch[2] = request(csr_der=make_csr(generate_private_key(KeyAlgorithm.ED25519), ID))
    batch[3] = request(csr_der=bytes(MAX_CSR_BYTES + 1))
    batch[4] = request(profile="no such")
    batch[5] = request(spiffe_id=TrustDomain("other.test").id("/a"))
    inline, beside, checks = MemoryLog(), MemoryLog(), Counting(workers)
    expected = await issuer(inline).issue_x509(batch)
    found = await issuer(beside, checks).issue_x509(batch)
    assert checks.asked == len(batch) - 2, "all but the oversized one and the one without a profile"
    for one, other in zip(expected, found, strict=True):
        assert type(one) is type(other)
        if isinstance(one, Error):
            assert str(one) == str(other)
        else:
            assert (one.id, one.serial, one.chain[1:]) == (other.id, other.serial, other.chain[1:])
    assert isinstance(found[1], InvalidCsr)
    assert found[1].defect is CsrDefect.WRONG_SIGNATURE
    assert found[3].defect is CsrDefect.TOO_LARGE
    assert isinstance(found[5], PermissionDenied)
    assert len(beside.stored) == len(inline.stored) == sum(not isinstance(each, Error) for each in found)
    assert isinstance(found[2], UnsupportedKey) == isinstance(expected[2], UnsupportedKey)


async def test_small_batches_do_not_take_the_way_there_and_back(workers):
    checks = Counting(workers)
    assert not isinstance((await issuer(MemoryLog(), checks).issue_x509([request()]))[0], Error)
    assert checks.asked == 0


async def test_what_could_not_be_checked_is_not_issued(workers):
    log = MemoryLog()
    made = issuer(log, workers)
    await workers.close()
    with pytest.raises(Unavailable):
        await made.issue_x509([request() for _ in range(CHECKED_BESIDE_FROM)])
    assert not log.stored
