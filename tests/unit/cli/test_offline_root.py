"""A root whose key never meets a network."""

import pytest

from eastwest.cli.offline_root import make_root
from eastwest.plugins.secret_files import ExposedFile


def test_a_passphrase_that_others_can_read_makes_no_root(tmp_path):
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("three words and a dog\n")
    passphrase.chmod(0o644)
    root, key = tmp_path / "root.pem", tmp_path / "root.key"
    with pytest.raises(ExposedFile, match="open to other users"):
        make_root("shop.example", root, key, passphrase, 3650, "ec-p256")
    assert not root.exists()
    assert not key.exists()
    passphrase.chmod(0o600)
    make_root("shop.example", root, key, passphrase, 3650, "ec-p256")
    assert b"ENCRYPTED" in key.read_bytes()
