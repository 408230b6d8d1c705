"""The server of a page in the browser, and what every page needs."""

import functools
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opensora.errors import ConfigError, OpenSoraError

if TYPE_CHECKING:
    import fastapi
    import gradio

LOOPBACK = "127.0.0.1"


def make_app(host: str = LOOPBACK) -> "fastapi.FastAPI":
    """An application without pages. On loopback it answers this machine's names alone, so that a page of another site
    cannot reach it under a name of its own."""
    import fastapi
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = fastapi.FastAPI(openapi_url=None)
    if host == LOOPBACK:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[LOOPBACK, "localhost"])
    return app


def mount(app: "fastapi.FastAPI", page: "gradio.Blocks", assets: Path, **settings: Any) -> "fastapi.FastAPI":
    """Put a page at / of an application. assets: folder of its page.js and page.css. settings: of gradio.mount_gradio_app."""
    import gradio

    script, style = ((assets / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    mounted = gradio.mount_gradio_app(app, page, path="/", head=f"<script>{script}</script>", css=style, **settings)
    # Gradio refuses paths of the server in requests, and files outside allowed_paths in answers, for a page that it
    # launched itself only (processing_utils._check_allowed of 6.31).
    page.has_launched = True
    return mounted


def sentences(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler of a page whose OpenSoraErrors are shown to the visitor; any other error is gradio's "Error"."""
    import gradio

    @functools.wraps(handler)
    def shown(*arguments: Any, **named: Any) -> Any:
        try:
            return handler(*arguments, **named)
        except OpenSoraError as error:
            raise gradio.Error(str(error), print_exception=False) from error

    return shown


def serve(app: "fastapi.FastAPI", port: int, host: str = LOOPBACK) -> None:
    """Print the address and serve until Ctrl-C or SIGTERM, which both raise KeyboardInterrupt at the end, so that callers
    clean up. port: 0 takes a free one. Raises ConfigError for one that is taken.
    """
    import uvicorn

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise ConfigError(
            f"--host {host} --port {port}: {reason}; allowed: an address of this machine and a free port, 0 for any"
        ) from error
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # uvicorn ends by itself, then raises what it got once more
    print(f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)).run([listener])


# Gradio takes the content of gradio.HTML for a template as well: ${...} in a caption would be run as JavaScript.
_LITERAL = str.maketrans({sign: f"&#{ord(sign)};" for sign in "$`\\{}"})


def literal_html(content: str) -> str:
    """HTML without a sign that gradio's templates know; what people wrote in it must be escaped before."""
    return content.translate(_LITERAL)
