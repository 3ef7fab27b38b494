"""A server that takes what webhooks send."""

import base64
import http.server
import threading
from contextlib import contextmanager

SECRET = "whsec_" + base64.b64encode(b"a key of ours").decode()


class Receiver(http.server.ThreadingHTTPServer):
    """Keeps what is posted, as body and headers, and answers with what it is told to, else with 204."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got, self.answers = [], []
        self.url = f"http://127.0.0.1:{self.server_port}/hook"


@contextmanager
def receiving():
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        self.server.got.append((body, dict(self.headers)))
        self.send_response(self.server.answers.pop(0) if self.server.answers else 204)
        self.end_headers()

    def log_message(self, *_):
        pass
