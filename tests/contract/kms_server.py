"""AWS KMS on loopback, as its own process: Moto's, with what Moto lacks and our key store needs.

Added: digests and Ed25519 in Sign, refusal of keys that are about to be deleted, pages in ListAliases, and failures to
order. Prints its port. ``POST /fail {"mode": ..., "times": N}`` makes the next N calls fail: ``throttle``, ``error``
(HTTP 500), ``hang`` (no answer until the caller has gone) or ``forbid``.
"""

import base64
import json
import sys
import threading
from typing import ClassVar

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from moto.kms import models, utils
from moto.kms.exceptions import JsonRESTError, ValidationException
from moto.kms.responses import KmsResponse
from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

ED25519 = "ECC_NIST_EDWARDS25519"
ML_DSA = "ML_DSA_44"
OURS = {ED25519: "ED25519_SHA_512", ML_DSA: "ML_DSA_SHAKE_256"}
HASHES = {
    "ECDSA_SHA_256": hashes.SHA256(),
    "ECDSA_SHA_384": hashes.SHA384(),
    "RSASSA_PKCS1_V1_5_SHA_256": hashes.SHA256(),
}
PAGE = 3  # small, so that a handful of keys needs several pages


class InvalidState(JsonRESTError):
    code = 400

    def __init__(self, arn):
        super().__init__("KMSInvalidStateException", f"{arn} is pending deletion.")


class EdwardsKey(utils.AbstractPrivateKey):
    def __init__(self):
        self.private_key = ed25519.Ed25519PrivateKey.generate()

    def sign(self, message, signing_algorithm):
        assert signing_algorithm == "ED25519_SHA_512"
        return self.private_key.sign(message)

    def verify(self, message, signature, signing_algorithm):
        raise NotImplementedError

    def public_key(self):
        return self.private_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


class MlDsaKey(EdwardsKey):
    def __init__(self):
        self.private_key = mldsa.MLDSA44PrivateKey.generate()

    def sign(self, message, signing_algorithm):
        assert signing_algorithm == "ML_DSA_SHAKE_256"
        return self.private_key.sign(message)


def sign(response):
    parameters = json.loads(response.body)
    response._validate_key_id(parameters["KeyId"])
    key = response.kms_backend.describe_key(parameters["KeyId"])
    message = base64.b64decode(parameters["Message"], validate=True)
    algorithm = parameters["SigningAlgorithm"]
    if key.key_state == "PendingDeletion":
        raise InvalidState(key.arn)
    if algorithm not in key.signing_algorithms:
        raise ValidationException(f"{algorithm} does not go with {key.key_spec}")
    if len(message) > 4096:
        raise ValidationException("Message must have length less than or equal to 4096")
    if parameters.get("MessageType", "RAW") == "RAW":
        signature = key.private_key.sign(message, algorithm)
    else:
        if algorithm not in HASHES or len(message) != HASHES[algorithm].digest_size:
            raise ValidationException("Digest is invalid length for algorithm")
        private, hashed = key.private_key.private_key, Prehashed(HASHES[algorithm])
        if isinstance(private, rsa.RSAPrivateKey):
            signature = private.sign(message, padding.PKCS1v15(), hashed)
        else:
            signature = private.sign(message, ec.ECDSA(hashed))
    answer = {"KeyId": key.arn, "Signature": base64.b64encode(signature).decode(), "SigningAlgorithm": algorithm}
    return json.dumps(answer)


def list_aliases(response, whole=KmsResponse.list_aliases):
    parameters = json.loads(response.body)
    aliases = json.loads(whole(response))["Aliases"]
    start = int(parameters.get("Marker", "0"))
    page = {"Aliases": aliases[start : start + PAGE], "Truncated": start + PAGE < len(aliases)}
    if page["Truncated"]:
        page["NextMarker"] = str(start + PAGE)
    return json.dumps(page)


def extend_moto():
    specs, generate = utils.KeySpec.key_specs, models.generate_private_key
    algorithms = models.Key.signing_algorithms.fget
    utils.KeySpec.key_specs = classmethod(lambda _: [*specs(), *OURS])
    made = {ED25519: EdwardsKey, ML_DSA: MlDsaKey}
    models.generate_private_key = lambda spec: made[spec]() if spec in made else generate(spec)
    models.Key.signing_algorithms = property(
        lambda key: [OURS[key.key_spec]] if key.key_spec in OURS else algorithms(key)
    )
    KmsResponse.sign = sign
    KmsResponse.list_aliases = list_aliases


class Failing:
    """Stands before the real application and fails when told."""

    BODIES: ClassVar = {
        "throttle": ("400 Bad Request", "ThrottlingException"),
        "error": ("500 Internal Server Error", "KMSInternalException"),
        "forbid": ("400 Bad Request", "AccessDeniedException"),
    }

    def __init__(self, application):
        self._application = application
        self._ordered = []
        self._released = threading.Event()

    def __call__(self, environ, start_response):
        if environ["PATH_INFO"] == "/fail":
            length = int(environ["CONTENT_LENGTH"])
            order = json.loads(environ["wsgi.input"].read(length))
            self._released.set()
            self._released = threading.Event()
            self._ordered = [order["mode"]] * order["times"]
            start_response("200 OK", [])
            return [b""]
        mode = self._ordered.pop() if self._ordered else ""
        if not mode:
            return self._application(environ, start_response)
        if mode == "hang":
            self._released.wait(30)
            mode = "error"
        status, name = self.BODIES[mode]
        start_response(status, [("Content-Type", "application/x-amz-json-1.1")])
        sentence = f"no: {environ.get('HTTP_AUTHORIZATION', '')}"  # as AWS quotes what it was sent
        return [json.dumps({"__type": name, "message": sentence}).encode()]


def main():
    extend_moto()
    application = Failing(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=MotoRequestHandler)
    print(server.server_address[1], flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()  # until the test's process goes


if __name__ == "__main__":
    main()
