"""Stands behind a proxy in place of Callboard and tells what got there, as JSON; `/seen` lists the paths."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

seen: list[str] = []


class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = json.dumps({"for": self.headers["X-Forwarded-For"], "seen": seen}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        seen.append(self.path)
        while length := int(self.rfile.readline(), 16):
            self.rfile.read(length + 2)
        self.rfile.readline()
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("", 8000), Echo).serve_forever()
