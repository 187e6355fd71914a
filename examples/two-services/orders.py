"""Takes orders, and asks the stock for each. Speaks plain HTTP on unix sockets, and knows nothing of Eastwest.

POST /orders/{item}   one, please: reserves it at the service "stock", which is reached through the second argument,
                      the socket of this program's own sidecar. The sidecar adds who is calling, and checks who answers.
"""

import http.client
import json
import os
import socket
import socketserver
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path


class Sidecar(http.client.HTTPConnection):
    """HTTP to a service by its name, over the sidecar's socket."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(way_out)


class Orders(BaseHTTPRequestHandler):
    """One request to the orders."""

    def do_POST(self) -> None:
        match self.path.split("/"):
            case ["", "orders", item]:
                self.order(item)
            case _:
                self.answer(404, {"error": "try POST /orders/tea"})

    def order(self, item: str) -> None:
        stock = Sidecar("stock", timeout=10)
        try:
            stock.request("POST", f"/items/{item}/reservations")
            reply = stock.getresponse()
            said = json.load(reply)
        finally:
            stock.close()
        if reply.status == 201:
            self.answer(201, {"ordered": item, "left": said["left"]})
        else:
            self.answer(502, {"error": "stock said no", "status": reply.status, "stock": said["error"]})

    def answer(self, status: int, value: dict) -> None:
        body = json.dumps(value).encode() + b"\n"
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: a unix socket has no client address, and the sidecar keeps the record."""


if __name__ == "__main__":
    socket_path, way_out = sys.argv[1:]
    os.umask(0o077)  # the socket is for this program's own user, which its sidecar runs as
    Path(socket_path).unlink(missing_ok=True)
    with socketserver.ThreadingUnixStreamServer(socket_path, Orders) as server:
        server.serve_forever()
