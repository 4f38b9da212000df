"""A web server on the loopback that takes what apprise sends by json://."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET = "a-password-of-its-own"


@dataclass
class Mailbox:
    """messages: as they came, each with title, message, type and attachments."""

    messages: list[dict] = field(default_factory=list)
    address: str = ""


@contextmanager
def mailbox(status: int = 200) -> Iterator[Mailbox]:
    """status: what each message is answered with."""
    found = Mailbox()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            found.messages.append(json.loads(content))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found.address = f"json://user:{SECRET}@127.0.0.1:{server.server_address[1]}/{SECRET}"
        yield found
        server.shutdown()
