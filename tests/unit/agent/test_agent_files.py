"""What an agent keeps on disk and in the kernel, and what it reads from there."""

import os
import random
import socket
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from agent_parts import AGENT, CA, TD, SigningServer, entry, update

from eastwest import errors
from eastwest.agent import keyring
from eastwest.agent.bootstrap import Bootstrap, read_bundle
from eastwest.agent.cache import Cache
from eastwest.agent.check import check_agent
from eastwest.agent.config import AgentConfig, Paths, check, override, read_config
from eastwest.agent.identities import Held
from eastwest.agent.keys import new_key
from eastwest.agent.own import OwnIdentity
from eastwest.agent.received import BadSvid, ClockSkew, check_clock, check_svid
from eastwest.agent.state import State
from eastwest.entropy import SystemEntropy
from eastwest.pki.chain import dump_chain_pem
from eastwest.pki.jwks import export_bundle
from eastwest.process.locked import locked
from eastwest.process.notify import notify
from eastwest.spiffe.id import TrustDomain
from eastwest.testing.ca import TestCA
from eastwest.testing.clock import FakeClock
from eastwest.testing.entropy import SeededEntropy

KEY = bytes(range(32))
STATE = State(TD).apply(update(7, full=True, entries=(entry("a", hint="h"),), bundles=(CA.bundle,)))


async def held() -> Held:
    clock = FakeClock(CA.now)
    key, csr = new_key(TD.id("/a"))
    (signed,) = await SigningServer(clock).sign([("a", csr)])
    assert not isinstance(signed, errors.Error)
    svid = check_svid(list(signed.cert_chain), key.spki, TD.id("/a"), CA.bundle, clock.now())
    return Held("a", 3, svid, key, clock.now())


async def test_the_cache_gives_back_what_it_took(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c", AGENT, KEY, SeededEntropy())
    assert cache.load_state() is None
    assert cache.load_svids() == ()
    one = await held()
    cache.save_state(STATE)
    cache.save_svids([one])
    again = Cache(tmp_path / "c", AGENT, KEY, SeededEntropy())
    assert again.load_state() == STATE
    assert again.load_svids() == (one,)
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in (tmp_path / "c").iterdir())
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o700
    cache.forget()
    assert list((tmp_path / "c").iterdir()) == []


async def test_what_is_not_ours_or_damaged_counts_as_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path, AGENT, KEY, SeededEntropy())
    cache.save_state(STATE)
    cache.save_svids([await held()])
    assert Cache(tmp_path, AGENT, KEY[::-1], SeededEntropy()).load_svids() == ()
    other = Cache(tmp_path, TD.id("/spire/agent/join_token/t2"), KEY, SeededEntropy())
    assert other.load_state() is None
    assert other.load_svids() == ()
    for name, load in (("state", cache.load_state), ("svids.sealed", cache.load_svids)):
        whole = (tmp_path / name).read_bytes()
        for damaged in (whole[:-1], whole[:10], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
            (tmp_path / name).write_bytes(damaged)
            assert not load()


async def test_without_a_sealing_key_nothing_secret_is_kept(tmp_path: Path) -> None:
    Cache(tmp_path, AGENT, KEY, SeededEntropy()).save_svids([await held()])
    cache = Cache(tmp_path, AGENT, None, SeededEntropy())
    cache.save_svids([await held()])
    cache.save_state(STATE)
    assert [file.name for file in tmp_path.iterdir()] == ["state"]
    assert not cache.keeps_keys
    assert cache.load_svids() == ()


def test_the_keyring_keeps_one_key() -> None:
    name = f"eastwest:test:{os.getpid()}"
    try:
        made = keyring.node_key(SystemEntropy(), name)
    except keyring.KeyringUnavailable as error:
        pytest.skip(str(error))
    try:
        assert len(made) == 32
        assert keyring.node_key(SystemEntropy(), name) == made
    finally:
        keyring.forget(name)
    assert keyring.node_key(SystemEntropy(), name) != made
    keyring.forget(name)
    keyring.forget(name)


def test_the_own_identity_is_kept_with_its_key(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    paths.home.mkdir()
    own = OwnIdentity(paths, SeededEntropy())
    assert own.load() is None
    clock = FakeClock(CA.now)
    server = SigningServer(clock)
    first = own.prepare(TD)
    unused = own.prepare(TD)
    kept = own.keep(first, list(server._svid(AGENT, first.csr).cert_chain))
    assert own.load() == kept
    assert kept.id == AGENT
    assert b"PRIVATE" not in repr(kept).encode()
    assert len(list(paths.keys.iterdir())) == 1
    assert unused.name not in os.listdir(paths.keys)
    second = own.prepare(TD)
    own.discard(second)
    assert own.load() == kept
    for key in paths.keys.iterdir():
        key.unlink()
    with pytest.raises(errors.Corrupt, match="no key beside it"):
        own.load()
    paths.svid.write_text("nonsense")
    with pytest.raises(errors.Corrupt, match="cannot be read"):
        own.load()
    own.forget()
    assert own.load() is None


def test_a_key_that_got_no_certificate_is_taken_again(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    paths.home.mkdir()
    own = OwnIdentity(paths, SeededEntropy())
    first = own.prepare(TD, resume=True)
    assert own.prepare(TD, resume=True).spki == first.spki
    assert own.prepare(TD).spki != first.spki
    own.keep(first, list(SigningServer(FakeClock(CA.now))._svid(AGENT, first.csr).cert_chain))
    assert own.prepare(TD, resume=True).spki != first.spki


def test_the_own_key_must_be_private_and_whole(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    paths.home.mkdir()
    own = OwnIdentity(paths, SeededEntropy())
    pending = own.prepare(TD)
    [key] = paths.keys.iterdir()
    assert key.stat().st_mode & 0o777 == 0o600
    own.keep(pending, list(SigningServer(FakeClock(CA.now))._svid(AGENT, pending.csr).cert_chain))
    key.chmod(0o644)
    with pytest.raises(errors.FailedPrecondition, match="open to other users"):
        own.load()
    key.chmod(0o600)
    key.write_text("nonsense")
    with pytest.raises(errors.Corrupt, match="key cannot be read"):
        own.load()


def test_an_expired_identity_needs_a_token(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    paths.home.mkdir()
    identity = OwnIdentity(paths, SeededEntropy())
    clock = FakeClock(CA.now)
    pending = identity.prepare(TD)
    identity.keep(pending, list(SigningServer(clock)._svid(AGENT, pending.csr).cert_chain))
    clock.advance(4000)

    def bootstrap(token: str, *, repeatable: bool = False) -> Bootstrap:
        settings = check(AgentConfig(server="h:1"), tmp_path, token)
        return Bootstrap(settings, identity, clock, random.Random(1), repeatable=repeatable)

    with pytest.raises(errors.FailedPrecondition, match="certificate ended at"):
        bootstrap("").stored(TD)
    assert bootstrap("t").stored(TD) is None
    # Evidence that can be shown again renews it in the background.
    assert bootstrap("", repeatable=True).stored(TD) == identity.load()
    with pytest.raises(errors.FailedPrecondition, match="data directory belongs to"):
        bootstrap("t").stored(TrustDomain("other.example"))


async def test_svids_are_checked_before_they_are_used() -> None:
    one = await held()
    now = CA.now
    with pytest.raises(BadSvid, match="another key"):
        check_svid(one.svid.chain, b"other", TD.id("/a"), CA.bundle, now)
    with pytest.raises(BadSvid, match=r"not spiffe://saas\.example/b"):
        check_svid(one.svid.chain, one.key.spki, TD.id("/b"), CA.bundle, now)
    with pytest.raises(BadSvid):
        check_svid(one.svid.chain, one.key.spki, None, TestCA().bundle, now)
    with pytest.raises(BadSvid):
        check_svid([], one.key.spki, None, CA.bundle, now)
    for off in (timedelta(hours=2), timedelta(minutes=-2)):
        with pytest.raises(ClockSkew, match="clock skew"):
            check_svid(one.svid.chain, one.key.spki, None, CA.bundle, now + off)


def test_clocks_may_differ_by_a_minute() -> None:
    now = CA.now
    check_clock(now, now + timedelta(seconds=60))
    check_clock(now, now - timedelta(seconds=60))
    with pytest.raises(ClockSkew, match="61 s behind"):
        check_clock(now, now + timedelta(seconds=61))
    with pytest.raises(ClockSkew, match="61 s ahead of"):
        check_clock(now, now - timedelta(seconds=61))


def test_bundles_are_read_in_both_forms(tmp_path: Path) -> None:
    file = tmp_path / "bundle"
    for content in (dump_chain_pem(CA.roots), export_bundle(CA.bundle)):
        file.write_bytes(content)
        bundle = read_bundle(file, None)
        assert bundle.trust_domain == TD
        assert bundle.x509_authorities == CA.bundle.x509_authorities
        with pytest.raises(errors.InvalidInput, match=r"is of saas\.example, not of other\.example"):
            read_bundle(file, TrustDomain("other.example"))
    for content in (b"", b"{}", b'{"keys":[]}', b"nonsense", b"\xff\xfe", export_bundle(CA.bundle)[:-9]):
        file.write_bytes(content)
        with pytest.raises(errors.InvalidInput, match="trust bundle"):
            read_bundle(file, None)
    with pytest.raises(errors.InvalidInput, match="cannot be read"):
        read_bundle(tmp_path / "none", None)


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('server = "a:1"\nwait = 5.0\n')
    config = override(read_config(file), server="[::1]:8081", wait=None)
    settings = check(config, tmp_path, "")
    assert (settings.host, settings.port, settings.wait) == ("::1", 8081, 5.0)
    file.write_text('[agent]\nserver = "a:1"\n')
    assert read_config(file).server == "a:1"
    token = tmp_path / "token"
    token.write_text("secret-token\n")
    settings = check(override(config, join_token_file=str(token)), tmp_path, "")
    assert settings.join_token == "secret-token"
    assert "secret" not in repr(settings)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("server = 3", "Expected `str`"),
        ("sever = 'a:1'", "unknown field"),
        ("server =", "Invalid value"),
        ("server = 'nohost'", "is not HOST:PORT"),
        ("server = 'h:99999'", "is not HOST:PORT"),
        ("", "no server is named"),
        ("server = 'a:1'\nwait = 0.0", "above 0"),
        ("server = 'a:1'\nhealth_port = 70000", "is no port"),
        ("server = 'a:1'\nmax_identities = 0", "at least 1"),
        ("server = 'a:1'\ntrust_domain = 'UPPER'", "outside a-z"),
        ("server = 'a:1'\njoin_token_file = '/none'", "cannot be read"),
    ],
)
def test_mistakes_in_settings_are_told(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(text)
    with pytest.raises(errors.InvalidInput, match=told):
        check(read_config(file), tmp_path, "")


def test_a_path_that_no_socket_can_have(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidInput, match="choose a shorter --data"):
        check(AgentConfig(server="a:1"), tmp_path / ("x" * 100), "")


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with (
        locked(lock, "agent"),
        pytest.raises(errors.FailedPrecondition, match=f"pid {os.getpid()}"),
        locked(lock, "agent"),
    ):
        pass
    with locked(lock, "agent"):
        pass


def test_the_service_manager_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "n"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
        notify("READY=1")
        assert manager.recv(100) == b"READY=1"
    notify("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("READY=1")


async def test_check_says_what_is_wrong_and_what_to_do(tmp_path: Path) -> None:
    data = tmp_path / "d"
    data.mkdir()
    data.chmod(0o700)
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(dump_chain_pem(CA.roots))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        config = AgentConfig(server=f"127.0.0.1:{port}", bundle=str(bundle))
        findings = {f.what: f for f in await check_agent(data, config, FakeClock(CA.now), SystemEntropy())}
    assert findings["socket"].bad
    assert str(data) in findings["socket"].fix
    assert findings["server"].bad
    assert not findings["bundle"].bad
    assert findings["identity"].state.startswith("none yet")
    (finding,) = await check_agent(data, AgentConfig(), FakeClock(CA.now), SystemEntropy())
    assert str(finding).startswith("FAIL settings: no server is named")


@pytest.mark.parametrize(("mode", "warned"), [(0o600, 0), (0o640, 0), (0o644, 1)])
def test_a_token_that_everybody_can_read_is_warned_of(tmp_path: Path, mode: int, warned: int) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    token.chmod(mode)
    settings = check(AgentConfig(server="127.0.0.1:1", join_token_file=str(token)), tmp_path)
    assert (settings.join_token, len(settings.warnings)) == ("s3cret", warned)
    assert all("s3cret" not in warning and str(token) in warning for warning in settings.warnings)


def test_a_token_that_everybody_can_write_is_refused(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("t-1\n")
    token.chmod(0o622)
    with pytest.raises(errors.FailedPrecondition, match="every user can write"):
        check(AgentConfig(server="127.0.0.1:1", join_token_file=str(token)), tmp_path)


async def test_evidence_that_was_refused_is_not_told_as_a_missing_token(tmp_path: Path) -> None:
    certificate, key = tmp_path / "node.pem", tmp_path / "node.key"
    certificate.write_text("")
    key.write_text("")
    key.chmod(0o644)
    options = {"certificate_path": str(certificate), "private_key_path": str(key)}
    config = AgentConfig(server="127.0.0.1:1", node_attestor="x509pop", node_provers={"x509pop": options})
    found = {f.what: str(f) for f in await check_agent(tmp_path, config, FakeClock(CA.now), SystemEntropy())}
    assert "the private key is open to every user" in found["evidence"]
    assert "join token" not in found["identity"]
    assert "once the evidence is right" in found["identity"]
