"""The disk key store with keys encrypted at rest."""

import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from eastwest.errors import FailedPrecondition, InvalidInput
from eastwest.pki.signer import KeyAlgorithm, KeyStoreContext
from eastwest.plugins.disk_keys import DiskKeyStore, Protection
from eastwest.process.plugins import KEY_STORES, load_plugin
from eastwest.testing import KeyStoreContract

P256 = KeyAlgorithm.EC_P256
PASSPHRASE = b"correct horse battery"
RANDOM = bytes(range(32))


class TestKeysUnderAKeyFile(KeyStoreContract):
    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path):
        self.directory = tmp_path / "keys"

    def make_store(self):
        return DiskKeyStore(self.directory, Protection.by_random_key(RANDOM))

    def reopen(self, _store):
        return self.make_store()


@pytest.fixture
def open_store(tmp_path):
    def make(**options):
        context = KeyStoreContext(directory=str(tmp_path / "keys"))
        return load_plugin(KEY_STORES, "disk", options, context, "server.toml: key_stores.disk")

    return make


@pytest.fixture
def passphrase_file(tmp_path):
    return private_file(tmp_path / "passphrase", PASSPHRASE + b"\n")


def private_file(path, content):
    path.write_bytes(content)
    path.chmod(0o600)
    return str(path)


def test_a_key_under_a_passphrase_is_one_that_openssl_opens(open_store, passphrase_file, tmp_path):
    signer = open_store(passphrase_file=passphrase_file).create("root", P256)
    path = tmp_path / "keys" / "root.pem"
    assert path.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    done = subprocess.run(
        ["openssl", "pkey", "-in", path, "-passin", f"file:{passphrase_file}", "-pubout"],
        capture_output=True,
        check=True,
    )
    assert done.stdout == signer.public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    shown = subprocess.run(["openssl", "asn1parse", "-in", path], capture_output=True, text=True, check=True).stdout
    assert ":scrypt" in shown
    assert ":aes-256-cbc" in shown


def test_the_three_sources_of_a_secret_open_what_they_made(open_store, passphrase_file, tmp_path, monkeypatch):
    made = open_store(passphrase_file=passphrase_file).create("root", P256)
    monkeypatch.setenv("EASTWEST_TEST_PASSPHRASE", PASSPHRASE.decode())
    assert open_store(passphrase_env="EASTWEST_TEST_PASSPHRASE").load("root").key_id == made.key_id
    key_file = private_file(tmp_path / "key", RANDOM)
    other = open_store(key_file=key_file).create("other", P256)
    assert open_store(key_file=key_file).load("other").key_id == other.key_id


def test_a_wrong_secret_is_one_clear_error_without_any_secret(open_store, tmp_path):
    first = private_file(tmp_path / "first", PASSPHRASE)
    second = private_file(tmp_path / "second", b"another secret\n")
    open_store(passphrase_file=first).create("root", P256)
    with pytest.raises(FailedPrecondition, match="passphrase of passphrase_file does not open the key") as caught:
        open_store(passphrase_file=second).load("root")
    assert caught.value.where.endswith("root.pem")
    assert "another secret" not in repr(caught.value) + str(caught.value)
    assert caught.value.__cause__ is None


def test_an_encrypted_key_is_not_opened_without_a_secret(open_store, passphrase_file):
    open_store(passphrase_file=passphrase_file).create("root", P256)
    with pytest.raises(FailedPrecondition, match=r"encrypted, and no secret is configured.*passphrase_file"):
        open_store().load("root")


def test_a_key_in_clear_is_not_taken_by_a_store_that_encrypts(open_store, passphrase_file):
    open_store().create("root", P256)
    with pytest.raises(FailedPrecondition, match=r"kept in clear.*reencrypt"):
        open_store(passphrase_file=passphrase_file).load("root")


def test_reencrypting_keeps_the_keys_and_may_be_done_again(tmp_path):
    clear = DiskKeyStore(tmp_path / "keys")
    made = {name: clear.create(name, P256).key_id for name in ("root", "log")}
    former, new = Protection.by_passphrase(PASSPHRASE), Protection.by_random_key(RANDOM)
    assert DiskKeyStore(tmp_path / "keys", former).reencrypt(None) == ["log", "root"]
    store = DiskKeyStore(tmp_path / "keys", new)
    assert store.reencrypt(former) == ["log", "root"]
    assert store.reencrypt(former) == []
    assert {name: store.load(name).key_id for name in store.names()} == made
    assert sorted(path.name for path in (tmp_path / "keys").iterdir()) == ["log.pem", "root.pem"]
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "keys").iterdir()} == {0o600}
    assert DiskKeyStore(tmp_path / "keys").reencrypt(new) == ["log", "root"]
    assert {name: clear.load(name).key_id for name in clear.names()} == made


def test_reencrypting_with_a_wrong_secret_changes_nothing(tmp_path):
    store = DiskKeyStore(tmp_path / "keys", Protection.by_random_key(RANDOM))
    store.create("root", P256)
    before = (tmp_path / "keys" / "root.pem").read_bytes()
    with pytest.raises(FailedPrecondition, match="does not open"):
        DiskKeyStore(tmp_path / "keys", Protection.by_random_key(RANDOM[::-1])).reencrypt(
            Protection.by_passphrase(PASSPHRASE)
        )
    assert (tmp_path / "keys" / "root.pem").read_bytes() == before


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_secret_that_others_can_read_is_refused(open_store, passphrase_file, mode):
    Path(passphrase_file).chmod(mode)
    with pytest.raises(FailedPrecondition, match=f"passphrase_file is open to other users.*{mode:04o}.*chmod 600"):
        open_store(passphrase_file=passphrase_file)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"passphrase_file": "nowhere"}, "does not exist"),
        ({"passphrase_env": "EASTWEST_TEST_UNSET"}, "EASTWEST_TEST_UNSET of passphrase_env is not set"),
        ({"passphrase_env": "A", "key_file": "b"}, "set only one of passphrase_env and key_file"),
        ({"passphrase_fil": "x"}, "no option 'passphrase_fil'.*did you mean 'passphrase_file'"),
        ({"key_file": 7}, r"disk\.key_file: Expected `str`"),
    ],
)
def test_wrong_options_are_told_with_their_place(open_store, options, sentence):
    with pytest.raises((InvalidInput, FailedPrecondition), match=sentence):
        open_store(**options)


@pytest.mark.parametrize("content", [b"", b"short", b"two\nlines of it"])
def test_a_passphrase_that_protects_nothing_is_refused(open_store, tmp_path, content):
    path = private_file(tmp_path / "weak", content)
    with pytest.raises((InvalidInput, FailedPrecondition), match=r"one line|shorter than 8 bytes"):
        open_store(passphrase_file=path)


@pytest.mark.parametrize("content", [b"x" * 31, b"x" * 32, b""])
def test_a_key_file_that_is_not_random_is_refused(open_store, tmp_path, content):
    path = private_file(tmp_path / "key", content)
    with pytest.raises((InvalidInput, FailedPrecondition), match="32 to 1,024 random bytes"):
        open_store(key_file=path)


def test_a_protection_does_not_show_its_secret():
    for protection in (Protection.by_passphrase(PASSPHRASE), Protection.by_random_key(RANDOM)):
        assert PASSPHRASE.decode() not in repr(protection)
        assert RANDOM.hex() not in repr(protection)
