"""A row of certificates in DER, taken apart: all of it or an error."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eastwest.pki.der import MAX_CERTIFICATES, split_der
from eastwest.testing import TestCA


def test_certificates_come_back_in_order():
    chain = (*TestCA().authority.chain, TestCA().root)
    assert split_der(b"".join(chain)) == chain
    assert split_der(b"") == ()


@pytest.mark.parametrize(
    "joined", [b"\x30", b"\x30\x01", b"\x31\x00", b"\x30\x80\x00\x00", b"\x30\x85\x00\x00\x00\x00\x01", b"\x30\x82\x01"]
)
def test_what_is_no_row_is_refused(joined):
    with pytest.raises(ValueError, match="not a row"):
        split_der(joined)


def test_a_row_without_end_is_refused():
    assert len(split_der(b"\x30\x00" * MAX_CERTIFICATES)) == MAX_CERTIFICATES
    with pytest.raises(ValueError, match="not a row"):
        split_der(b"\x30\x00" * (MAX_CERTIFICATES + 1))


@given(st.binary(max_size=300))
def test_any_bytes_are_split_whole_or_refused(joined):
    try:
        parts = split_der(joined)
    except ValueError:
        return
    assert b"".join(parts) == joined
