"""What our processes write when something breaks."""

import json
import subprocess
import sys

BREAKS = """
import structlog
from eastwest.process.logs import configure_logging
configure_logging("info")
def attest(token):
    payload = token.encode()
    raise ValueError("it broke")
try:
    attest("SECRET-TOKEN")
except ValueError:
    structlog.get_logger().exception("rpc.failed")
"""


def test_a_traceback_names_places_and_no_values_of_variables():
    done = subprocess.run([sys.executable, "-c", BREAKS], capture_output=True, text=True, check=True, timeout=60)
    [line] = done.stderr.splitlines()
    logged = json.loads(line)
    assert logged["exception"][0]["exc_value"] == "it broke"
    assert [frame["name"] for frame in logged["exception"][0]["frames"]] == ["<module>", "attest"]
    assert "SECRET-TOKEN" not in line
