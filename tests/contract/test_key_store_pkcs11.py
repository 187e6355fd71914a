"""Keys in a PKCS #11 token: SoftHSM's, in this process."""

import os
from pathlib import Path

import pkcs11
import pytest
from key_store_services import soft_hsm_module, soft_hsm_token
from pkcs11 import Attribute, KeyType, ObjectClass
from pkcs11.util.ec import encode_named_curve_parameters

from eastwest.errors import Corrupt, FailedPrecondition, InvalidInput, NotFound
from eastwest.pki.signer import KeyAlgorithm, KeyStoreContext, verify_signature
from eastwest.process.plugins import KEY_STORES, load_plugin
from eastwest.testing import KeyStoreContract

P256 = KeyAlgorithm.EC_P256
PIN = "493817"
MODULE = soft_hsm_module()
pytestmark = pytest.mark.skipif(
    MODULE is None and not os.environ.get("CI"), reason="SoftHSM is not installed (apt install softhsm2)"
)


@pytest.fixture(scope="module", autouse=True)
def _token_store(tmp_path_factory):
    # SoftHSM reads its configuration once in a process, so all tests of one process share a store of tokens.
    assert MODULE is not None, "CI needs SoftHSM: apt install softhsm2"
    home = tmp_path_factory.mktemp("softhsm")
    (home / "tokens").mkdir()
    (home / "conf").write_text(f"directories.tokendir = {home / 'tokens'}\nlog.level = ERROR\n")
    patch = pytest.MonkeyPatch()
    patch.setenv("SOFTHSM2_CONF", str(home / "conf"))
    # SoftHSM sees only the tokens that are there when it starts.
    soft_hsm_token("eastwest", PIN)
    soft_hsm_token("other", "777777")
    yield
    patch.undo()


@pytest.fixture
def token_options(tmp_path):
    pin = tmp_path / "pin"
    pin.write_text(f"{PIN}\n")
    pin.chmod(0o600)
    return {"module": MODULE, "token_label": "eastwest", "pin_file": str(pin), "label_prefix": f"{tmp_path.name}/"}


def open_store(options):
    context = KeyStoreContext(directory="/nonexistent")
    return load_plugin(KEY_STORES, "pkcs11", options, context, "server.toml: key_stores.pkcs11")


class TestPkcs11KeyStore(KeyStoreContract):
    algorithms = (KeyAlgorithm.EC_P256, KeyAlgorithm.EC_P384, KeyAlgorithm.ED25519)

    @pytest.fixture(autouse=True)
    def _options(self, token_options):
        self.options = token_options

    def make_store(self):
        return open_store(self.options)

    def reopen(self, _store):
        return open_store(self.options)


def raw_session():
    token = pkcs11.lib(MODULE).get_token(token_label="eastwest")
    try:
        return token.open(rw=True, user_pin=PIN)
    except pkcs11.UserAlreadyLoggedIn:
        return token.open(rw=True)


def raw_key(label, *, extractable, curve="secp256r1"):
    with raw_session() as session:
        parameters = session.create_domain_parameters(
            KeyType.EC, {Attribute.EC_PARAMS: encode_named_curve_parameters(curve)}, local=True
        )
        parameters.generate_keypair(
            store=True,
            label=label,
            private_template={Attribute.SENSITIVE: not extractable, Attribute.EXTRACTABLE: extractable},
        )


def test_a_key_is_made_inside_and_cannot_leave(token_options):
    open_store(token_options).create("root", P256)
    with raw_session() as session:
        wanted = {Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.LABEL: token_options["label_prefix"] + "root"}
        [key] = session.get_objects(wanted)
        assert key[Attribute.SENSITIVE]
        assert not key[Attribute.EXTRACTABLE]
        assert key[Attribute.NEVER_EXTRACTABLE]
        assert key[Attribute.LOCAL]
        with pytest.raises(pkcs11.AttributeSensitive):
            _ = key[Attribute.VALUE]


def test_a_signature_is_remote(token_options):
    signer = open_store(token_options).create("root", P256)
    assert signer.is_remote
    assert PIN not in repr(signer)


def test_a_key_that_could_leave_is_refused(token_options):
    raw_key(token_options["label_prefix"] + "open", extractable=True)
    with pytest.raises(FailedPrecondition, match="can be taken out"):
        open_store(token_options).load("open")


def test_two_keys_of_one_name_are_refused(token_options):
    for _ in range(2):
        raw_key(token_options["label_prefix"] + "twin", extractable=False)
    store = open_store(token_options)
    with pytest.raises(Corrupt, match="several keys"):
        store.load("twin")
    assert store.names() == ["twin"]


def test_a_key_of_another_curve_is_refused(token_options):
    raw_key(token_options["label_prefix"] + "k1", extractable=False, curve="secp256k1")
    with pytest.raises(Corrupt, match="type"):
        open_store(token_options).load("k1")


def test_a_prefix_keeps_two_stores_apart(token_options):
    first = open_store(token_options)
    second = open_store(token_options | {"label_prefix": token_options["label_prefix"] + "b."})
    first.create("root", P256)
    assert second.names() == []
    with pytest.raises(NotFound):
        second.load("root")


def test_a_signer_lives_through_the_end_of_its_sessions(token_options):
    signer = open_store(token_options).create("root", P256)
    signer.sign(b"before")
    # What a reset of the token does: the session ends without our knowing.
    signer._token._session.close()
    verify_signature(signer.public_key, signer.sign(b"after"), b"after")


def test_a_signer_of_a_deleted_key_says_so(token_options):
    store = open_store(token_options)
    signer = store.create("old", P256)
    signer.sign(b"x")
    store.delete("old")
    with pytest.raises(NotFound, match="no key named"):
        signer.sign(b"x")


def test_a_wrong_pin_is_told_and_not_shown(token_options):
    with pytest.raises(FailedPrecondition, match=r"refuses the PIN.*pin_file") as caught:
        open_store(token_options | {"token_label": "other"})
    assert PIN not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"module": "/nonexistent/lib.so"}, "module does not load.*full path"),
        ({"module": str(Path(__file__))}, "module does not load"),
        ({"token_label": "nope"}, "no token with label 'nope'"),
        ({"token_label": "", "slot": 99}, "no token with slot 99"),
        ({"token_label": ""}, "token_label or slot is needed"),
        ({"pin_file": ""}, "pin_file or pin_env is needed"),
        ({"pin_env": "X"}, "set only one of pin_file and pin_env"),
        ({"slot": "1"}, r"pkcs11\.slot: Expected `int"),
        ({"pin": "1234"}, "no option 'pin'.*did you mean"),
    ],
)
def test_wrong_options_are_told(token_options, changed, sentence):
    with pytest.raises((InvalidInput, FailedPrecondition), match=sentence):
        open_store(token_options | changed)
