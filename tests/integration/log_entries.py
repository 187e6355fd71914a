"""The entries that a server has recorded, judged by the published schema."""

import json
import sqlite3
from contextlib import closing

import jsonschema

from eastwest.errors import Corrupt
from eastwest.log.schema import log_schema
from eastwest.store.log_rows import read_entries, read_head


def recorded(data):
    """Every entry in the server's database, published or not; none where a test has left no whole database."""
    path = data / "server" / "server.db"
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            return list(read_entries(connection, 0, read_head(connection).size))
    except (sqlite3.Error, Corrupt):
        return []


def undeclared(data):
    """What is wrong with the entries of the server of ``data``: those that the catalogue of kinds does not describe."""
    return [f"entry {index}: {told}" for index, raw in enumerate(recorded(data)) if (told := problem(raw))]


_SCHEMA = log_schema()
_WHOLE = jsonschema.Draft202012Validator(
    {key: value for key, value in _SCHEMA.items() if key not in {"allOf", "$defs"}}
)
_KINDS = {kind: jsonschema.Draft202012Validator(schema) for kind, schema in _SCHEMA["$defs"].items()}


def problem(raw):
    """Why an entry does not fit the schema, or "": what the whole schema says, by its parts, as that is quicker."""
    entry = json.loads(raw)
    for validator in (_WHOLE, _KINDS.get(entry.get("kind"))):
        if validator is None:
            continue
        for error in validator.iter_errors(entry):
            return f"{entry.get('kind')}: {error.json_path}: {error.message[:300]}"
    return ""
