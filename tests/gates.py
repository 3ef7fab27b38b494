"""A way to a server of the tests that can be shut, or made to hang, and opened again."""

import contextlib
import socket
import threading


class Gate:
    """An address on loopback that leads to another one.

    What is sent while it hangs arrives when it goes on; while it is shut, connections are refused and lost.
    """

    def __init__(self, host, port):
        self._target = (host, port)
        self._goes = threading.Event()
        self._goes.set()
        self._listener = None
        self._pairs = []
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.open()

    def open(self):
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._serve, args=(self._listener,), daemon=True).start()

    def shut(self):
        # A thread that waits in accept would go on to: it must be woken.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._pairs:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._pairs = []

    @contextlib.contextmanager
    def hanging(self):
        self._goes.clear()
        try:
            yield
        finally:
            self._goes.set()

    def connect(self):
        return socket.create_connection(self._target)

    def _serve(self, listener):
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                try:
                    far = self.connect()
                except OSError:
                    near.close()
                    continue
                self._pairs += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._goes.wait()
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
