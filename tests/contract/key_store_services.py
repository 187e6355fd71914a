"""What key stores need to be tested against: a KMS process, a SoftHSM token."""

import json
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

SOFTHSM_MODULES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
)


class KmsProcess:
    """One KMS server; ends with ``close``, or with this process."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("kms_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        line = self._process.stdout.readline()
        assert line, "the KMS process did not start"
        self.url = f"http://127.0.0.1:{int(line)}"

    def fail(self, mode, times):
        body = json.dumps({"mode": mode, "times": times}).encode()
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/fail", body, method="POST"), timeout=10).close()

    def close(self):
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


def soft_hsm_module():
    """The path of SoftHSM's library, or None."""
    if shutil.which("softhsm2-util") is None:
        return None
    return next((path for path in SOFTHSM_MODULES if Path(path).exists()), None)


def soft_hsm_token(label, pin):
    """A new token in the store that SOFTHSM2_CONF names."""
    done = subprocess.run(
        ["softhsm2-util", "--init-token", "--free", "--label", label, "--pin", pin, "--so-pin", "12345678"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
