"""What is in stock. Speaks plain HTTP on the unix socket that is its only argument, and knows nothing of Eastwest.

GET  /items/{item}               how many are left
POST /items/{item}/reservations  take one
"""

import json
import os
import socketserver
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path

LEFT = {"tea": 7, "cocoa": 2}


class Stock(BaseHTTPRequestHandler):
    """One request to the stock."""

    def do_GET(self) -> None:
        match self.path.split("/"):
            case ["", "items", item] if item in LEFT:
                self.answer(200, {"item": item, "left": LEFT[item]})
            case _:
                self.answer(404, {"error": "no such item"})

    def do_POST(self) -> None:
        match self.path.split("/"):
            case ["", "items", item, "reservations"] if LEFT.get(item):
                LEFT[item] -= 1
                self.answer(201, {"item": item, "left": LEFT[item]})
            case _:
                self.answer(409, {"error": "none left"})

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
    [socket_path] = sys.argv[1:]
    os.umask(0o077)  # the socket is for this program's own user, which its sidecar runs as
    Path(socket_path).unlink(missing_ok=True)
    with socketserver.ThreadingUnixStreamServer(socket_path, Stock) as server:
        server.serve_forever()
