"""What every key store must do, as a test class: subclass it, give ``make_store``, and let pytest collect it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256

from eastwest.errors import AlreadyExists, Corrupt, Error, InvalidInput, NotFound
from eastwest.pki.signer import KeyAlgorithm, KeyStore, NoteKeyStore, Signer, key_id_of, verify_signature
from eastwest.pki.token_signer import TokenKeyStore


class KeyStoreContract:
    """The promises of ``eastwest.pki.signer.KeyStore``, each one a test."""

    algorithms: tuple[KeyAlgorithm, ...] = tuple(KeyAlgorithm)
    """The key types that this store makes; the others it must refuse."""

    def make_store(self) -> KeyStore:
        """An empty store, new for each test."""
        raise NotImplementedError

    def reopen(self, store: KeyStore) -> KeyStore:
        """The same store as another process would open it; stores without persistence return ``store``."""
        return store

    def test_a_new_store_is_empty(self) -> None:
        assert list(self.make_store().names()) == []

    def test_a_created_key_signs_with_its_algorithm(self) -> None:
        store = self.make_store()
        for algorithm in self.algorithms:
            signer = store.create(f"key-{algorithm}", algorithm)
            assert signer.algorithm is algorithm
            assert signer.key_id == key_id_of(signer.public_key)
            _check_signs(signer)

    def test_a_loaded_key_is_the_created_one(self) -> None:
        store = self.make_store()
        for algorithm in self.algorithms:
            created = store.create(f"key-{algorithm}", algorithm)
            loaded = self.reopen(store).load(f"key-{algorithm}")
            assert (loaded.key_id, loaded.algorithm) == (created.key_id, algorithm)
            _check_signs(loaded)
            verify_signature(created.public_key, loaded.sign(b"data"), b"data")

    def test_a_key_type_that_the_store_does_not_make_is_refused(self) -> None:
        store = self.make_store()
        for algorithm in set(KeyAlgorithm) - set(self.algorithms):
            _expect(InvalidInput, lambda algorithm=algorithm: store.create("key", algorithm))  # type: ignore[misc]
        assert list(store.names()) == []

    def test_a_key_for_the_log_is_kept_apart_from_those_that_are_certified(self) -> None:
        store = self.make_store()
        if not isinstance(store, NoteKeyStore):
            assert not hasattr(store, "create_note_key"), "half of a port is none"
            return
        made = store.create_note_key("log")
        _expect(AlreadyExists, lambda: store.create_note_key("log"))
        again = self.reopen(store)
        assert isinstance(again, NoteKeyStore)
        loaded = again.load_note_key("log")
        made.public_key.verify(loaded.sign(b"data"), b"data")
        assert list(again.names()) == ["log"]
        _expect(Corrupt, lambda: store.load("log"))
        store.create("other", KeyAlgorithm.ED25519)
        _expect(Corrupt, lambda: store.load_note_key("other"))
        _expect(NotFound, lambda: store.load_note_key("none"))
        _expect(TypeError, lambda: pickle.dumps(loaded))
        assert "PRIVATE" not in repr(loaded)
        store.delete("log")
        _expect(NotFound, lambda: store.load_note_key("log"))

    def test_data_of_any_length_is_signed(self) -> None:
        signer = self.make_store().create("key", KeyAlgorithm.EC_P256)
        for data in (b"", b"x", bytes(100_000)):
            verify_signature(signer.public_key, signer.sign(data), data)

    def test_many_threads_sign_at_once(self) -> None:
        store = self.make_store()
        signers = [store.create(f"key-{number}", KeyAlgorithm.EC_P256) for number in range(2)]

        def sign_some(number: int) -> None:
            signer = signers[number % 2]
            for turn in range(5):
                data = f"{number} {turn}".encode()
                verify_signature(signer.public_key, signer.sign(data), data)

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(sign_some, range(16)))

    def test_of_many_that_create_one_name_one_succeeds(self) -> None:
        store = self.make_store()

        def create(_number: int) -> str | None:
            try:
                return store.create("root", KeyAlgorithm.EC_P256).key_id
            except AlreadyExists:
                return None

        with ThreadPoolExecutor(4) as threads:
            made = [key_id for key_id in threads.map(create, range(4)) if key_id is not None]
        assert made == [self.reopen(store).load("root").key_id]

    def test_a_deleted_key_is_gone(self) -> None:
        store = self.make_store()
        first = store.create("old", KeyAlgorithm.EC_P256)
        store.create("kept", KeyAlgorithm.EC_P256)
        store.delete("old")
        _expect(NotFound, lambda: store.load("old"))
        _expect(NotFound, lambda: store.delete("old"))
        assert list(self.reopen(store).names()) == ["kept"]
        assert store.create("old", KeyAlgorithm.EC_P256).key_id != first.key_id
        assert self.reopen(store).load("old").key_id != first.key_id

    def test_every_key_is_new(self) -> None:
        store = self.make_store()
        assert store.create("a", KeyAlgorithm.EC_P256).key_id != store.create("b", KeyAlgorithm.EC_P256).key_id

    def test_names_are_listed_in_order(self) -> None:
        store = self.make_store()
        for name in ("b", "a", "root-2", "ca.1_x"):
            store.create(name, KeyAlgorithm.EC_P256)
        assert list(self.reopen(store).names()) == ["a", "b", "ca.1_x", "root-2"]

    def test_an_existing_key_is_never_overwritten(self) -> None:
        store = self.make_store()
        first = store.create("root", KeyAlgorithm.EC_P256)
        _expect(AlreadyExists, lambda: store.create("root", KeyAlgorithm.EC_P256))
        assert self.reopen(store).load("root").key_id == first.key_id

    def test_a_missing_key_is_not_found(self) -> None:
        store = self.make_store()
        _expect(NotFound, lambda: store.load("root"))
        _expect(NotFound, lambda: store.delete("root"))
        store.create("other", KeyAlgorithm.EC_P256)
        _expect(NotFound, lambda: store.load("root"))

    def test_names_that_could_leave_the_store_are_refused(self) -> None:
        store = self.make_store()
        for name in ("", ".", "..", "../root", "a/b", "/etc/x", "-a", ".a", "A", "a b", "a\n", "a\0", "ä", "a" * 101):
            _expect(InvalidInput, lambda name=name: store.create(name, KeyAlgorithm.EC_P256))  # type: ignore[misc]
            _expect(InvalidInput, lambda name=name: store.load(name))  # type: ignore[misc]
            _expect(InvalidInput, lambda name=name: store.delete(name))  # type: ignore[misc]
        assert list(store.names()) == []

    def test_a_signer_does_not_show_or_hand_out_its_key(self) -> None:
        signer = self.make_store().create("root", KeyAlgorithm.EC_P256)
        assert "PRIVATE" not in repr(signer)
        assert "0x" not in repr(signer)
        for hand_out in (pickle.dumps, copy.copy, copy.deepcopy):
            _expect(TypeError, lambda hand_out=hand_out: hand_out(signer))  # type: ignore[misc]

    def test_keys_for_tokens_sign_tokens_and_nothing_else(self) -> None:
        store = self.make_store()
        if not isinstance(store, TokenKeyStore):
            return
        created = store.create_token_key("token")
        _expect(AlreadyExists, lambda: store.create_token_key("token"))
        store.create("root", KeyAlgorithm.EC_P256)
        reopened = self.reopen(store)
        assert isinstance(reopened, TokenKeyStore)
        keeper: TokenKeyStore = reopened
        for signer in (created, keeper.load_token_key("token")):
            assert (signer.key_id, signer.public_key.key_size) == (created.key_id, 2048)
            for data in (b"data", bytes(5000)):
                created.public_key.verify(signer.sign(data), data, PKCS1v15(), SHA256())
            assert "PRIVATE" not in repr(signer)
            for hand_out in (pickle.dumps, copy.copy, copy.deepcopy):
                _expect(TypeError, lambda hand_out=hand_out, signer=signer: hand_out(signer))  # type: ignore[misc]
        assert list(reopened.names()) == ["root", "token"]
        _expect(Corrupt, lambda: reopened.load("token"))
        _expect(Corrupt, lambda: keeper.load_token_key("root"))
        _expect(NotFound, lambda: keeper.load_token_key("none"))
        _expect(InvalidInput, lambda: keeper.create_token_key("../x"))
        reopened.delete("token")
        _expect(NotFound, lambda: keeper.load_token_key("token"))


def _check_signs(signer: Signer) -> None:
    signature = signer.sign(b"data")
    verify_signature(signer.public_key, signature, b"data")
    try:
        verify_signature(signer.public_key, signature, b"datum")
    except InvalidSignature:
        return
    raise AssertionError("a signature verified for other data")


def _expect(error: type[Error | TypeError], call: Callable[[], object]) -> None:
    try:
        call()
    except error:
        return
    raise AssertionError(f"{error.__name__} was not raised")
