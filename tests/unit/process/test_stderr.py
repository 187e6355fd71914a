"""Loggers outlive what stands for standard error while a command runs inside another program."""

import subprocess
import sys

SCRIPT = """
import io, sys
import structlog
from eastwest.process.logs import configure_logging
log = structlog.get_logger()
before, sys.stderr = sys.stderr, io.StringIO()
configure_logging("info")
log.info("first")
sys.stderr.close()
sys.stderr = before
log.info("second")
"""


def test_a_line_goes_to_what_standard_error_is_when_it_is_written():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"second"' in done.stderr
    assert '"first"' not in done.stderr
