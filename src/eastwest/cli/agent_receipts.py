"""``eastwest agent receipt``: what an agent has kept to prove the certificates that it holds."""

from __future__ import annotations

from pathlib import Path

from eastwest.agent.config import Paths
from eastwest.agent.receipts import SUFFIX, Receipt, read_receipt
from eastwest.cli.log_proof import write_receipt
from eastwest.cli.options import counted, print_json
from eastwest.errors import NotFound


def show_receipts(data: Path, spiffe_id: str, out: Path | None, *, as_json: bool) -> None:
    """List the receipts of the agent of ``data``, or write them into ``out``. Nothing is verified here."""
    if not Paths(data).home.is_dir():
        raise NotFound(f"there is no agent in {data}", fix="give --data DIR of an agent that has run")
    found = _receipts(Paths(data).receipts, spiffe_id)
    if not found:
        whose = f" for {spiffe_id}" if spiffe_id else ""
        raise NotFound(
            f"the agent of {data} holds no receipt{whose}",
            fix="a receipt comes a second or two after its certificate, from the server that the agent is connected to",
        )
    if out is not None:
        for one in found:
            write_receipt(out, _name(one), one.entry.encode(), one.proof)
    if as_json:
        print_json({"receipts": [_told(one, out) for one in found]})
        return
    for one in found:
        print(f"{one.spiffe_id}  entry {one.index}  certificate {one.certificate_sha256[:16]}")
        if out is not None:
            print(f"  {out}/{_name(one)}.json  {out}/{_name(one)}.tlog-proof")
    print(f"{counted(len(found), 'receipt')}; judge with eastwest log verify-proof and the log's verifier key")


def _receipts(directory: Path, spiffe_id: str) -> list[Receipt]:
    # Not by glob, which is silent about a directory that this user may not read.
    paths = sorted(directory.iterdir()) if directory.is_dir() else []
    read = (read_receipt(path) for path in paths if path.name.endswith(SUFFIX))
    return [one for one in read if one is not None and spiffe_id in ("", one.spiffe_id)]


def _name(receipt: Receipt) -> str:
    return f"entry-{receipt.index}"


def _told(receipt: Receipt, out: Path | None) -> dict[str, object]:
    told: dict[str, object] = {
        "spiffe_id": receipt.spiffe_id,
        "certificate_sha256": receipt.certificate_sha256,
        "index": receipt.index,
    }
    if out is None:
        return told | {"entry": receipt.entry, "proof": receipt.proof}
    return told | {"files": [f"{out}/{_name(receipt)}.json", f"{out}/{_name(receipt)}.tlog-proof"]}
