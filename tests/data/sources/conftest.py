"""What the tests of data share: a server on the loopback."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Site(ThreadingHTTPServer):
    """Serves `files`, path -> bytes; stops in the middle of a body while `stalls` is set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.stalls = threading.Event()
        self.ended = threading.Event()
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        pass  # clients that hang up are part of the tests


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        site = self.server
        site.requests.append(self.path)
        body = site.files.get(self.path)
        if body is None:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])
        self.wfile.flush()
        if site.stalls.is_set():
            site.ended.wait(30)
        self.wfile.write(body[len(body) // 2 :])

    do_HEAD = do_GET  # noqa: N815 - the name http.server looks for

    def log_message(self, *args):
        pass


@pytest.fixture
def site():
    site = Site()
    thread = threading.Thread(target=site.serve_forever, daemon=True)
    thread.start()
    yield site
    site.ended.set()
    site.shutdown()
    site.server_close()
