"""A server that has its CSRs checked in processes beside it: same certificates, same record, no process left."""

import os
import signal
from pathlib import Path

from cryptography import x509
from server_process import ServerProcess, serial, wait_gone
from test_server_process import logged, register

BATCH = 64


def children(pid: int) -> list[int]:
    """The pids below a process that run its worker module, by what the kernel says."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


async def test_batches_are_checked_beside_and_a_worker_that_dies_is_replaced(tmp_path):
    server = ServerProcess(tmp_path / "data")
    server.init()
    config = server.data / "server" / "server.toml"
    config.write_text(config.read_text() + "csr_workers = 2\n")
    server.start()
    try:
        agent = await server.join()
        entry = await register(server, agent, "/web")
        first = await agent.issue(*[entry] * BATCH)
        workers = children(server.process.pid)
        assert len(workers) >= 2
        os.kill(workers[-1], signal.SIGKILL)
        second = await agent.issue(*[entry] * BATCH)
        results = [*first.results, *second.results]
        assert [result.status.code for result in results] == [0] * 2 * BATCH
        released = {f"{serial(result.svid.cert_chain[0]):x}" for result in results}
        assert len(released) == 2 * BATCH
        leaf = x509.load_der_x509_certificate(results[0].svid.cert_chain[0])
        leaf.verify_directly_issued_by(x509.load_der_x509_certificate(results[0].svid.cert_chain[1]))
        workers = children(server.process.pid)
        agent.close()
        assert server.stop() == 0
        # Stopping publishes what the log still has to.
        recorded = {entry["serial"] for entry in logged(server) if entry["kind"] == "x509_svid.issued"}
        assert released <= recorded
        for worker in workers:
            if Path(f"/proc/{worker}").exists():
                wait_gone(worker)
            assert not Path(f"/proc/{worker}").exists()
    finally:
        server.kill()
