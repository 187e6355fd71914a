"""The page on plug-ins tells every option of those that come along, with its default."""

import re
from pathlib import Path

import pytest
from msgspec import NODEFAULT, json, structs

from eastwest.plugins.aws_kms_keys import AwsKmsKeyStore
from eastwest.plugins.disk_keys import DiskKeyStore
from eastwest.plugins.pkcs11_keys import Pkcs11KeyStore
from eastwest.plugins.upstream_disk import DiskUpstream
from eastwest.plugins.upstream_spire import SpireUpstream
from eastwest.plugins.upstream_vault import VaultUpstream

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "plugins.md").read_text()
TABLES = {
    "key_stores.aws_kms": AwsKmsKeyStore,
    "key_stores.disk": DiskKeyStore,
    "key_stores.pkcs11": Pkcs11KeyStore,
    "upstreams.disk": DiskUpstream,
    "upstreams.spire": SpireUpstream,
    "upstreams.vault": VaultUpstream,
}


@pytest.mark.parametrize("table", TABLES)
def test_every_option_is_told_with_its_default(table):
    section = re.search(rf"^\| `\[{re.escape(table)}\]`.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert section, table
    told = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", section.group(1), re.MULTILINE))
    assert told == {field.name: shown(field) for field in structs.fields(TABLES[table].Options)}


def shown(field):
    if field.default is NODEFAULT:
        return "(needed)"
    return "none" if field.default is None else f"`{json.encode(field.default).decode()}`"
