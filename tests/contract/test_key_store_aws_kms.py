"""Keys in AWS KMS: our adapter over HTTP to a KMS process on loopback."""

import time

import pytest
from key_store_services import KmsProcess

from eastwest.errors import FailedPrecondition, InvalidInput, NotFound, PermissionDenied, Unavailable
from eastwest.pki.signer import KeyAlgorithm, KeyStoreContext
from eastwest.process.plugins import KEY_STORES, load_plugin
from eastwest.testing import KeyStoreContract

P256 = KeyAlgorithm.EC_P256
SECRET = "wJalrXUtnFEMIbPxRfiCYEXAMPLEKEY"
ACCESS_KEY = "AKIAEXAMPLEEXAMPLE12"


@pytest.fixture(scope="module")
def kms():
    process = KmsProcess()
    yield process
    process.close()


@pytest.fixture
def kms_options(kms, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    return {
        "region": "eu-central-1",
        "endpoint_url": kms.url,
        "alias_prefix": f"{tmp_path.name}/",
        "timeout": 5.0,
    }


def open_store(options):
    context = KeyStoreContext(directory="/nonexistent")
    return load_plugin(KEY_STORES, "aws_kms", options, context, "server.toml: key_stores.aws_kms")


class TestAwsKmsKeyStore(KeyStoreContract):
    # AWS makes ML-DSA-65 keys too; the KMS that runs here does not.
    algorithms = (KeyAlgorithm.EC_P256, KeyAlgorithm.EC_P384, KeyAlgorithm.ED25519)

    @pytest.fixture(autouse=True)
    def _options(self, kms_options):
        self.options = kms_options

    def make_store(self):
        return open_store(self.options)

    def reopen(self, _store):
        return open_store(self.options)


def test_a_signature_is_remote(kms_options):
    assert open_store(kms_options).create("root", P256).is_remote


def test_many_keys_are_listed_over_many_pages(kms_options):
    store = open_store(kms_options)
    names = [f"ca.{number}" for number in range(8)]
    for name in names:
        store.create(name, P256)
    assert store.names() == names


def test_a_prefix_keeps_two_stores_apart(kms_options):
    open_store(kms_options).create("root", P256)
    second = open_store(kms_options | {"alias_prefix": kms_options["alias_prefix"] + "b/"})
    assert second.names() == []
    with pytest.raises(NotFound):
        second.load("root")
    second.create("other", P256)
    assert open_store(kms_options).names() == ["root"]


def test_a_signer_of_a_deleted_key_is_refused(kms_options):
    store = open_store(kms_options)
    signer = store.create("old", P256)
    store.delete("old")
    with pytest.raises(FailedPrecondition, match="KMSInvalidStateException"):
        signer.sign(b"data")


def test_deleting_goes_on_where_a_crash_left_it(kms_options):
    store = open_store(kms_options)
    signer = store.create("old", P256)
    store._call("schedule_key_deletion", "", KeyId=signer._key, PendingWindowInDays=7)
    store.delete("old")
    assert store.names() == []


@pytest.mark.parametrize("mode", ["throttle", "error"])
def test_a_short_disturbance_is_not_noticed(kms, kms_options, mode):
    signer = open_store(kms_options).create("root", P256)
    kms.fail(mode, 1)
    assert signer.sign(b"data")


@pytest.mark.parametrize(
    ("mode", "name"), [("throttle", "ThrottlingException"), ("error", "KMSInternalException|InternalServerError|500")]
)
def test_a_long_disturbance_is_unavailable(kms, kms_options, mode, name):
    signer = open_store(kms_options).create("root", P256)
    kms.fail(mode, 3)
    with pytest.raises(Unavailable, match=name) as caught:
        signer.sign(b"data")
    assert ACCESS_KEY not in str(caught.value)
    assert signer.sign(b"data")


def test_no_answer_is_unavailable_in_bounded_time(kms, kms_options):
    signer = open_store(kms_options | {"timeout": 0.2}).create("root", P256)
    kms.fail("hang", 3)
    began = time.monotonic()
    with pytest.raises(Unavailable, match="ReadTimeoutError"):
        signer.sign(b"data")
    assert time.monotonic() - began < 10
    kms.fail("error", 0)


def test_a_forbidden_call_does_not_show_what_was_sent(kms, kms_options):
    signer = open_store(kms_options).create("root", P256)
    kms.fail("forbid", 1)
    with pytest.raises(PermissionDenied, match=r"AccessDeniedException.*key policy") as caught:
        signer.sign(b"data")
    assert ACCESS_KEY not in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_nobody_there_is_unavailable(kms_options):
    with pytest.raises(Unavailable, match="EndpointConnectionError"):
        open_store(kms_options | {"endpoint_url": "http://127.0.0.1:9", "timeout": 0.5}).names()


def test_no_credentials_are_told(kms_options, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(FailedPrecondition, match="no AWS credentials"):
        open_store(kms_options).names()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"alias_prefix": "a b"}, "alias_prefix"),
        ({"alias_prefix": "aws/x"}, "alias_prefix"),
        ({"deletion_days": 1}, "7 to 30"),
        ({"timeout": 0.0}, "timeout"),
        ({"endpoint_url": "not a url"}, "endpoint_url is not usable"),
        ({"regin": "x"}, "did you mean 'region'"),
    ],
)
def test_wrong_options_are_told(kms_options, changed, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        open_store(kms_options | changed)
