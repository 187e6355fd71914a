"""What is wrong in server.toml is told with its line, and with the name that may have been meant."""

import pytest

from eastwest.errors import InvalidInput
from eastwest.server.config import read_file


@pytest.mark.parametrize(
    ("text", "where", "message", "fix"),
    [
        ("[tokens]\nport = 0\nlifetime = 60", ":4", "there is no setting [tokens] lifetime", "did you mean 'life'? "),
        ("agent_prt = 1", ":2", "there is no setting agent_prt", "did you mean 'agent_port'? "),
        ("# x\nzzz = 1", ":3", "there is no setting zzz", ""),
        ("life = 1\n[tokens]\nlife = 6000", ":2", "there is no setting life", ""),
        ("[tokens]\nlife = 6000", ":3", "Expected `int` <= 300 - at `$.tokens.life`", ""),
        ("csr_workers = 'x'", ":2", "Expected `int`, got `str` - at `$.csr_workers`", ""),
    ],
)
def test_a_setting_that_is_wrong(text: str, where: str, message: str, fix: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        read_file(f'trust_domain = "td.test"\n{text}\n'.encode(), "server.toml", {})
    error = raised.value
    assert (error.where, error.message) == (f"server.toml{where}", message)
    assert error.fix == f"{fix}see docs/reference/server.md"
