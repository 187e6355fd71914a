"""Every key store keeps the promises of the port; each one also has what is its own."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from eastwest.errors import AlreadyExists, Corrupt, FailedPrecondition, NotFound, Unavailable
from eastwest.pki.signer import KeyAlgorithm, KeyStore
from eastwest.plugins.disk_keys import MAX_KEY_FILE_BYTES, DiskKeyStore
from eastwest.plugins.memory_keys import MemoryKeyStore
from eastwest.testing import KeyStoreContract

P256 = KeyAlgorithm.EC_P256


class TestMemoryKeyStore(KeyStoreContract):
    def make_store(self) -> KeyStore:
        return MemoryKeyStore()


class TestDiskKeyStore(KeyStoreContract):
    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path):
        self.directory = tmp_path / "data" / "keys"

    def make_store(self) -> KeyStore:
        return DiskKeyStore(self.directory)

    def reopen(self, _store: KeyStore) -> KeyStore:
        return DiskKeyStore(self.directory)

    def test_files_and_directory_are_for_the_owner_alone(self):
        old = os.umask(0)
        try:
            self.make_store().create("root", P256)
        finally:
            os.umask(old)
        assert _mode(self.directory) == 0o700
        assert _mode(self.directory / "root.pem") == 0o600

    def test_the_file_is_pkcs8_that_other_tools_read(self):
        self.make_store().create("root", P256)
        assert (self.directory / "root.pem").read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")

    def test_nothing_else_is_left_behind(self):
        store = self.make_store()
        store.create("root", P256)
        with pytest.raises(AlreadyExists):
            store.create("root", P256)
        assert [path.name for path in self.directory.iterdir()] == ["root.pem"]

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
    def test_a_key_open_to_others_is_refused_with_the_fix(self, mode):
        store = self.make_store()
        store.create("root", P256)
        (self.directory / "root.pem").chmod(mode)
        with pytest.raises(FailedPrecondition, match=f"mode {mode:04o}.*chmod 600"):
            store.load("root")

    @pytest.mark.parametrize("mode", [0o750, 0o701])
    def test_a_directory_open_to_others_is_refused(self, mode):
        store = self.make_store()
        store.create("root", P256)
        self.directory.chmod(mode)
        with pytest.raises(FailedPrecondition, match="chmod 700"):
            store.load("root")
        with pytest.raises(FailedPrecondition, match="chmod 700"):
            store.create("other", P256)

    def test_a_symbolic_link_is_not_followed(self, tmp_path):
        store = self.make_store()
        store.create("root", P256)
        (self.directory / "other.pem").symlink_to(self.directory / "root.pem")
        with pytest.raises(Unavailable):
            store.load("other")

    def test_a_pipe_is_refused_without_waiting(self):
        store = self.make_store()
        store.create("root", P256)
        os.mkfifo(self.directory / "pipe.pem", 0o600)
        with pytest.raises(FailedPrecondition, match="regular file"):
            store.load("pipe")

    def test_a_damaged_file_is_corrupt_and_not_quoted(self):
        store = self.make_store()
        store.create("root", P256)
        path = self.directory / "root.pem"
        secret = path.read_text().splitlines()[1]
        path.write_text(f"-----BEGIN PRIVATE KEY-----\n{secret[:-4]}\n-----END PRIVATE KEY-----\n")
        with pytest.raises(Corrupt) as caught:
            store.load("root")
        assert secret[:20] not in str(caught.value)
        assert caught.value.__cause__ is None

    def test_a_huge_file_is_corrupt(self):
        store = self.make_store()
        store.create("root", P256)
        with (self.directory / "root.pem").open("ab") as file:
            file.truncate(MAX_KEY_FILE_BYTES + 1)
        with pytest.raises(Corrupt):
            store.load("root")

    def test_a_key_of_another_type_is_corrupt(self):
        store = self.make_store()
        store.create("root", P256)
        key = rsa.generate_private_key(65537, 2048)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (self.directory / "root.pem").write_bytes(pem)
        with pytest.raises(Corrupt, match="type"):
            store.load("root")

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
    def test_another_users_file_is_refused(self):
        store = self.make_store()
        store.create("root", P256)
        os.chown(self.directory / "root.pem", 12345, -1)
        with pytest.raises(FailedPrecondition, match="another user"):
            store.load("root")

    def test_a_crash_before_the_link_leaves_no_key(self):
        # What a power cut during create leaves: a temporary file, and no key by that name.
        store = self.make_store()
        store.create("root", P256)
        (self.directory / ".new-abc").write_bytes(b"half")
        assert store.names() == ["root"]
        with pytest.raises(NotFound):
            store.load("new-abc")
        store.create("next", P256)

    def test_a_failing_disk_is_unavailable_and_leaves_nothing(self, monkeypatch):
        store = self.make_store()
        store.create("root", P256)

        def full(_descriptor):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(Unavailable, match="No space left"):
            store.create("next", P256)
        assert [path.name for path in self.directory.iterdir()] == ["root.pem"]

    def test_a_file_in_place_of_the_directory(self):
        self.directory.parent.mkdir()
        self.directory.write_text("")
        with pytest.raises((FailedPrecondition, Unavailable, AlreadyExists)):
            self.make_store().load("root")


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)
