"""Whole servers on key stores other than plain files."""

import os
import tempfile
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from key_store_services import KmsProcess, soft_hsm_module, soft_hsm_token
from server_process import ServerProcess, eastwest

from eastwest.pki.chain import verify_chain
from eastwest.spiffe.id import TrustDomain


@pytest.fixture
def home():
    with tempfile.TemporaryDirectory(prefix="ew-") as directory:
        yield Path(directory)


def private_file(path, text):
    path.write_text(text)
    path.chmod(0o600)
    return path


def init(home, settings, environment=None):
    config = home / "settings.toml"
    config.write_text(f'trust_domain = "td.test"\nagent_port = 0\n{settings}')
    words = ["server", "init", "--data", home, "--trust-domain", "td.test", "--config", config]
    return eastwest(*words, env={**os.environ, **(environment or {})})


@contextmanager
def running(home):
    server = ServerProcess(home)
    server.start(seconds=60)
    try:
        yield server
    finally:
        server.kill()


async def check_issues(server):
    """An agent joins and is certified by the keys in the store."""
    agent = await server.join()
    try:
        assert verify_chain(agent.svid.cert_chain, agent.roots, datetime.now(UTC), TrustDomain.parse("td.test"))
    finally:
        agent.close()


async def test_a_server_with_keys_under_a_passphrase(home):
    passphrase = private_file(home / "passphrase", "correct horse battery\n")
    done = init(home, f'[key_stores.disk]\npassphrase_file = "{passphrase}"\n')
    assert done.returncode == 0, done.stderr
    kept = list((home / "server" / "keys").iterdir())
    assert kept
    assert all(path.read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----") for path in kept)
    with running(home) as server:
        await check_issues(server)
        # While it runs, nobody changes how its keys are kept.
        refused = eastwest("ca", "reencrypt-keys", "--data", home)
        assert refused.returncode == 1
        assert "another server" in refused.stderr

    (home / "passphrase").write_text("another secret\n")
    told = eastwest("server", "run", "--data", home)
    assert told.returncode == 1
    assert "passphrase of passphrase_file does not open the key" in told.stderr
    assert "Traceback" not in told.stderr
    assert "secret\n" not in told.stderr


async def test_keys_are_encrypted_later_and_by_another_secret(home):
    assert init(home, "").returncode == 0
    config = home / "server" / "server.toml"
    key_file = home / "key"
    key_file.write_bytes(os.urandom(32))
    key_file.chmod(0o600)
    config.write_text(config.read_text() + f'\n[key_stores.disk]\nkey_file = "{key_file}"\n')
    told = eastwest("server", "run", "--data", home)
    assert "eastwest ca reencrypt-keys" in told.stderr
    done = eastwest("ca", "reencrypt-keys", "--data", home)
    assert done.returncode == 0, done.stderr
    assert "log-1" in done.stdout
    passphrase = private_file(home / "passphrase", "correct horse battery\n")
    config.write_text(config.read_text().replace(f'key_file = "{key_file}"', f'passphrase_file = "{passphrase}"'))
    done = eastwest("ca", "reencrypt-keys", "--data", home, "--former-key-file", key_file)
    assert done.returncode == 0, done.stderr
    with running(home) as server:
        await check_issues(server)


@pytest.mark.skipif(
    soft_hsm_module() is None and not os.environ.get("CI"), reason="SoftHSM is not installed (apt install softhsm2)"
)
async def test_a_server_with_keys_in_a_token(home, monkeypatch):
    (home / "tokens").mkdir()
    (home / "conf").write_text(f"directories.tokendir = {home / 'tokens'}\nlog.level = ERROR\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(home / "conf"))
    soft_hsm_token("eastwest", "493817")
    pin = private_file(home / "pin", "493817\n")
    settings = f'module = "{soft_hsm_module()}"\ntoken_label = "eastwest"\npin_file = "{pin}"\n'
    done = init(home, f'key_store = "pkcs11"\n[key_stores.pkcs11]\n{settings}')
    assert done.returncode == 0, done.stderr
    assert not (home / "server" / "keys").exists()
    for _ in range(2):
        with running(home) as server:
            await check_issues(server)
    # The log's key has its name there already: a second server is not made, and leaves nothing in the token.
    second = home / "second"
    second.mkdir()
    refused = init(second, f'key_store = "pkcs11"\n[key_stores.pkcs11]\n{settings}')
    assert refused.returncode == 1
    assert "a key named log-1 exists already" in refused.stderr


async def test_a_server_with_keys_in_a_kms(home, monkeypatch):
    kms = KmsProcess()
    try:
        for name, value in (("ACCESS_KEY_ID", "AKIAEXAMPLE"), ("SECRET_ACCESS_KEY", "example-secret")):
            monkeypatch.setenv(f"AWS_{name}", value)
        settings = f'region = "eu-central-1"\nendpoint_url = "{kms.url}"\n'
        done = init(home, f'key_store = "aws_kms"\n[key_stores.aws_kms]\n{settings}')
        assert done.returncode == 0, done.stderr
        with running(home) as server:
            await check_issues(server)
        text = (home / "server.err").read_text()
        assert "example-secret" not in text
    finally:
        kms.close()


def test_a_wrong_option_is_told_with_file_table_and_key(home):
    done = init(home, "[key_stores.disk]\npasphrase_file = 'x'\n")
    assert done.returncode != 0
    assert "key_stores.disk: there is no option 'pasphrase_file' (did you mean 'passphrase_file'?" in done.stderr
    assert not (home / "server").exists()
