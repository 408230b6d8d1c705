"""ChatServer: an OpenAI-compatible server in a thread of the test, which answers what the test says."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, str], str]  # status, headers, body
Script = Callable[[dict[str, Any], int], Reply]  # (request, its number) -> reply


def completion(
    text: str | None, finish_reason: str = "stop", usage: dict[str, int] | None = None, **more: Any
) -> Reply:
    """A good answer."""
    message = {"role": "assistant", "content": text, **more}
    value = {"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]}
    return 200, {}, json.dumps(value | ({"usage": usage} if usage else {}))


def failure(status: int, message: str, headers: dict[str, str] | None = None, code: str = "") -> Reply:
    return status, headers or {}, json.dumps({"error": {"message": message, "code": code}})


class ChatServer:
    """Use it in a `with` statement. requests, keys: what came, in order of arrival."""

    def __init__(self, script: Script) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.requests)
                    outer.requests.append(body)
                    outer.keys.append(self.headers.get("Authorization"))
                status, headers, text = script(body, number)
                data = text.encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None: ...

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None: ...  # clients that do not wait for the answer

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> "ChatServer":
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
