"""What the nouns of the command line share."""

import pytest

from eastwest.cli.options import start_logging
from eastwest.errors import InvalidInput


@pytest.mark.parametrize("level", ["loud", "", "INFO", "critical"])
def test_a_log_level_that_is_none_is_named_with_those_that_are(level):
    with pytest.raises(InvalidInput, match="debug, info, warning, error"):
        start_logging(level)
