"""What is known of a fork: a file that keeps the log from signing until a person has looked.

It is a file and no row of the database, because an old copy of the database that was put back is the usual cause.
"""

from __future__ import annotations

from datetime import datetime

import structlog

from eastwest.errors import Corrupt, FailedPrecondition
from eastwest.process.files import replace_file
from eastwest.server.config import ServerPaths

GUIDE = "see docs/how-to/recover-the-log.md, 'Two histories'"
_log = structlog.get_logger()


def forked(paths: ServerPaths, what: str, evidence: str, now: datetime) -> Corrupt:
    """Keep the evidence, for people and for the next start; gives the error that stops the log."""
    text = (
        f"{now:%Y-%m-%dT%H:%M:%SZ} the log was stopped: {what}\n"
        "Nothing is appended or signed while this file is here. Read docs/how-to/recover-the-log.md, 'Two histories',\n"
        "before you move it away. Evidence follows.\n\n"
        f"{evidence}"
    )
    _log.critical("log.forked", what=what, evidence=str(paths.log_fork))
    try:
        replace_file(paths.log_fork, text.encode(), 0o600)
    except OSError as error:
        # The log stops in any case; only the next start would not know.
        _log.critical("log.fork_evidence_lost", error=error.strerror, evidence=evidence)
    return Corrupt(what, where=str(paths.log_fork), fix=GUIDE)


def refuse_forked(paths: ServerPaths) -> None:
    """Raise ``FailedPrecondition`` while evidence of a fork lies there."""
    if paths.log_fork.exists():
        raise FailedPrecondition(
            "the log was stopped, because somebody was shown another history of it",
            where=str(paths.log_fork),
            fix=GUIDE,
        )
