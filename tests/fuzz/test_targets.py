"""Every reader of strangers' bytes, given mutations of good inputs and noise."""

import sys
import tracemalloc

import pytest
from fuzz_messages import mutated
from fuzz_settings import few
from fuzz_targets import open_targets
from hypothesis import given
from hypothesis import strategies as st

# A serial number that is not positive makes the library warn, while we refuse or ignore the certificate.
pytestmark = pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
TARGETS = open_targets()
MAX_GROWTH = 64 * 1024 * 1024
"""Bytes that reading an input of some kilobytes may take."""


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_read_is_taken_or_refused(name):
    target = TARGETS[name]
    for seed in target.seeds:
        target.feed(seed)
    seeds = st.sampled_from(target.seeds)

    @few(SLOW.get(name, 120))
    @given(mutated(seeds) | st.binary(max_size=200) | st.sampled_from(HOSTILE))
    def run(data):
        target.feed(data)

    run()


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_hostile_by_design_is_refused_without_much_memory(name):
    tracemalloc.start()
    try:
        for data in (*HOSTILE, *LARGE):
            TARGETS[name].feed(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MAX_GROWTH


DIGITS = b"9" * (sys.get_int_max_str_digits() + 100)
HOSTILE = [
    b"",
    b"\0" * 64,
    b"\xff" * 64,
    b"\x30\x84\xff\xff\xff\xff",
    b"\x30\x80" * 500,
    b"[" * 5000,
    b'{"a":' * 5000,
    b'{"keys":' + b"[" * 3000,
    b'{"keys":[],"spiffe_sequence":' + DIGITS + b"}",
    b'{"keys":[{"use":"x509-svid","x5c":[1]},{"use":"jwt-svid","kid":"a","kty":"RSA","n":"AA","e":"AA"}]}',
    DIGITS,
    b"c2sp.org/tlog-proof@v1\nindex " + DIGITS + b"\n\nx\n",
    b"a: &a [x]\nb: *a\n",
    b"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n",
    b"[" * 3000 + b"]" * 3000,
    b"- " * 3000,
    b"? " * 3000,
    b"a: " + DIGITS,
    b"!!python/object/apply:os.system [id]",
    b"%YAML 9.9\n---\na",
    b"trust_domain: " + b"a" * 70000,
    "trust_domain: \u2028\n".encode(),
    b"permit(principal, action, resource) when {" + b"(" * 2000,
    b"permit(principal, action, resource) when {" + b"!" * 2000 + b"true};",
    b'{"hostname":"\\ud800","agentname":"a","port":1}',
    b'{"hostname":"a.allowed","agentname":"default","port":1e400}',
    b'{"hostname":"a.allowed","agentname":"default","port":' + DIGITS + b"}",
    b'[{"time":"9999-12-31T23:59:59+23:59","service":"","verdict":"allow","code":"ALLOWED","count":1}]',
]
"""Small inputs that have broken parsers elsewhere, or here."""
LARGE = [b"[" * 60_000, b"\x30\x84\x00\x00\xea\x60" + bytes(60_000), b"a" * 60_000, b"\n" * 60_000]
SLOW = {
    "estate yaml": 60,
    "workloads yaml": 60,
    "policy cedar": 60,
    "estate names": 40,
    "log files": 60,
    "log size": 30,
}
