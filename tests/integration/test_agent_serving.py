"""An agent under a small authority: from the join token to SVIDs that are pushed to workloads."""

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from agent_authority import AGENT_ID, TD, FakeAuthority, running, settings
from agent_workload import ME, ask, first, ids, stream
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from eastwest import errors
from eastwest.api.spiffe.workload import workload_pb2 as api
from eastwest.rpc.tls import certificate_id

PY_SPIFFE = """
import json, sys
from spiffe import WorkloadApiClient
with WorkloadApiClient() as client:
    svids = client.fetch_x509_svids()
    token = client.fetch_jwt_svid(audience={"billing"})
    checked = client.validate_jwt_svid(token.token, "billing")
    print(json.dumps([[str(s.spiffe_id) for s in svids], str(token.spiffe_id), str(checked.spiffe_id)]))
"""


@pytest.fixture
def data() -> Iterator[Path]:
    # The socket's path must stay short.
    with tempfile.TemporaryDirectory(prefix="ew-") as directory:
        yield Path(directory) / "d"


@pytest.fixture
async def authority() -> AsyncIterator[FakeAuthority]:
    authority = FakeAuthority()
    await authority.start()
    yield authority
    await authority.stop()


def leaf(response: api.X509SVIDResponse) -> x509.Certificate:
    return x509.load_der_x509_certificate(response.svids[0].x509_svid[: _first_length(response.svids[0].x509_svid)])


def _first_length(chain: bytes) -> int:
    return 4 + int.from_bytes(chain[2:4])


async def test_an_svid_comes_with_its_key_and_bundle(authority: FakeAuthority, data: Path) -> None:
    authority.put("shop", ME, hint="main")
    config = settings(authority, data)
    async with running(config) as ready:
        assert ready == f"agent ready: socket {config.paths.socket}, id {AGENT_ID}"
        reply = await first(config.paths.socket)
        (svid,) = reply.svids
        assert svid.spiffe_id == "spiffe://saas.example/shop"
        assert svid.hint == "main"
        assert svid.bundle == authority.ca.root
        assert not reply.federated_bundles
        assert certificate_id(leaf(reply).public_bytes(Encoding.DER)) == TD.id("/shop")
        await authority.until(lambda: authority.acks and authority.acks[-1].number == authority.number)
    assert config.paths.socket.exists() is False
    assert config.paths.svid.stat().st_mode & 0o777 == 0o600
    assert config.paths.keys.stat().st_mode & 0o777 == 0o700


async def test_registrations_are_pushed_to_an_open_stream(authority: FakeAuthority, data: Path) -> None:
    authority.put("shop", ME)
    config = settings(authority, data)
    async with running(config):
        with pytest.raises(errors.PermissionDenied, match="no identity issued"):
            async with stream(config.paths.socket) as opened:
                assert ids(await opened.next()) == ["shop"]
                authority.put("billing", ME)
                assert ids(await opened.next(1)) == ["billing", "shop"]
                authority.remove("billing")
                assert ids(await opened.next(1)) == ["shop"]
                authority.remove("shop")
                await opened.next(1)


async def test_a_changed_entry_is_signed_anew(authority: FakeAuthority, data: Path) -> None:
    authority.put("shop", ME)
    config = settings(authority, data)
    async with running(config), stream(config.paths.socket) as opened:
        before = await opened.next()
        authority.put("shop", ME, ttl=600)
        after = await opened.next(2)
        assert leaf(after).serial_number != leaf(before).serial_number
        assert after.svids[0].x509_svid_key != before.svids[0].x509_svid_key
        assert leaf(after).not_valid_after_utc < leaf(before).not_valid_after_utc


async def test_svids_rotate_at_half_life_without_a_gap(authority: FakeAuthority, data: Path) -> None:
    authority.put("shop", ME, ttl=3)
    config = settings(authority, data)
    async with running(config), stream(config.paths.socket) as opened:
        serials = set()
        for _ in range(3):
            certificate = leaf(await opened.next(4))
            assert certificate.not_valid_after_utc > datetime.now(UTC) + timedelta(seconds=0.5)
            serials.add(certificate.serial_number)
        assert len(serials) == 3


async def test_one_entry_that_cannot_be_signed_does_not_stop_others(authority: FakeAuthority, data: Path) -> None:
    authority.put("broken", ME)
    authority.unsignable.add("broken")
    authority.put("shop", ME)
    config = settings(authority, data)
    async with running(config), stream(config.paths.socket) as opened:
        assert ids(await opened.next()) == ["shop"]
        authority.unsignable.clear()
        assert ids(await opened.next()) == ["broken", "shop"]


async def test_a_caller_gets_what_it_is_and_nothing_else(authority: FakeAuthority, data: Path) -> None:
    authority.put("me", f"unix:path:{Path(sys.executable).resolve()}", ME)
    authority.put("other", "unix:path:/usr/bin/nothing", ME)
    config = settings(authority, data)
    async with running(config):
        assert ids(await first(config.paths.socket)) == ["me"]


async def test_a_program_without_an_entry_is_refused(authority: FakeAuthority, data: Path) -> None:
    authority.put("other", "unix:path:/usr/bin/nothing", ME)
    config = settings(authority, data)
    async with running(config):
        with pytest.raises(errors.PermissionDenied, match="no identity issued"):
            await first(config.paths.socket)
        for name in ("FetchX509Bundles", "FetchJWTBundles"):
            with pytest.raises(errors.PermissionDenied, match="no identity issued"):
                async with stream(config.paths.socket, name) as opened:
                    await opened.next()


async def test_calls_must_carry_the_header(authority: FakeAuthority, data: Path) -> None:
    authority.put("shop", ME)
    config = settings(authority, data)
    async with running(config):
        request = api.JWTSVIDRequest(audience=["a"])
        with pytest.raises(errors.InvalidInput, match="security header missing"):
            await ask(config.paths.socket, "FetchJWTSVID", request, metadata={})


async def test_jwt_svids_are_cached_and_validated(authority: FakeAuthority, data: Path) -> None:
    authority.put("shop", ME)
    config = settings(authority, data)
    socket = config.paths.socket
    async with running(config):
        asked = [ask(socket, "FetchJWTSVID", api.JWTSVIDRequest(audience=["billing"])) for _ in range(5)]
        tokens = {reply.svids[0].svid for reply in await asyncio.gather(*asked)}
        assert len(tokens) == 1
        assert authority.jwts == 1
        token = tokens.pop()
        valid = await ask(socket, "ValidateJWTSVID", api.ValidateJWTSVIDRequest(audience="billing", svid=token))
        assert valid.spiffe_id == "spiffe://saas.example/shop"
        assert valid.claims["sub"] == "spiffe://saas.example/shop"
        for bad in (
            api.ValidateJWTSVIDRequest(audience="admin", svid=token),
            api.ValidateJWTSVIDRequest(audience="billing", svid=token[:-8] + "AAAAAAAA"),
            api.ValidateJWTSVIDRequest(audience="billing", svid="nonsense"),
            api.ValidateJWTSVIDRequest(svid=token),
        ):
            with pytest.raises(errors.InvalidInput):
                await ask(socket, "ValidateJWTSVID", bad)
        with pytest.raises(errors.InvalidInput, match="audience must be specified"):
            await ask(socket, "FetchJWTSVID", api.JWTSVIDRequest())
        with pytest.raises(errors.InvalidInput, match="invalid requested SPIFFE ID"):
            await ask(socket, "FetchJWTSVID", api.JWTSVIDRequest(audience=["a"], spiffe_id="http://x"))
        with pytest.raises(errors.PermissionDenied, match="no identity issued"):
            await ask(
                socket, "FetchJWTSVID", api.JWTSVIDRequest(audience=["a"], spiffe_id="spiffe://saas.example/other")
            )


async def test_bundles_are_streamed(authority: FakeAuthority, data: Path) -> None:
    authority.put("shop", ME)
    config = settings(authority, data)
    async with running(config):
        async with stream(config.paths.socket, "FetchX509Bundles") as opened:
            assert dict((await opened.next()).bundles) == {"spiffe://saas.example": authority.ca.root}
        async with stream(config.paths.socket, "FetchJWTBundles") as opened:
            jwks = (await opened.next()).bundles["spiffe://saas.example"]
            assert authority.ca.jwt_key.key_id.encode() in jwks


async def test_a_foreign_client_is_served(authority: FakeAuthority, data: Path) -> None:
    authority.put("shop", ME)
    config = settings(authority, data)
    async with running(config):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            PY_SPIFFE,
            stdout=subprocess.PIPE,
            env={**os.environ, "SPIFFE_ENDPOINT_SOCKET": f"unix://{config.paths.socket}"},
        )
        output, _ = await process.communicate()
        shop = "spiffe://saas.example/shop"
        assert output.decode().strip() == f'[["{shop}"], "{shop}", "{shop}"]'


async def test_rotations_of_many_entries_share_a_call(authority: FakeAuthority, data: Path) -> None:
    for number in range(30):
        authority.put(f"w{number}", ME)
    config = settings(authority, data)
    async with running(config):
        assert len((await first(config.paths.socket)).svids) == 30
        assert [len(batch) for batch in authority.batches] == [30]
