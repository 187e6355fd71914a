"""The ledger's rows in other people's forms: OCSF events, OTLP log records, a ClickHouse table.

Pure mappings; who carries them there is in ``eastwest.plugins`` (``sink_*``), who feeds those in
``eastwest.server.export``. A row is a mapping of the fields of ``eastwest.ledger.record.Decision``, as JSON has them,
and ``row`` (its number), ``agent`` and ``kind``. What a row lacks is empty.
"""
