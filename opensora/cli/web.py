"""A page in the browser to sample from: `opensora web CONFIG`, where CONFIG is a sampling config.

It takes prompts, sizes, steps, guidance, seeds, pictures and clips, shows progress, and keeps what was made in the config's
save_dir. Videos are made one at a time; users take turns. Needs: pip install --no-deps -r requirements/web.txt
"""

import contextlib
import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path

from opensora.cli.command_parser import CommandParser
from opensora.cli.run_main import run_main
from opensora.config import load
from opensora.errors import ConfigError
from opensora.log import logger
from opensora.schema import SampleRun
from opensora.web.serve import LOOPBACK, serve

INSTALL = "pip install --no-deps -r requirements/web.txt"


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(prog="opensora web", description=__doc__)
    parser.add_argument("config", help="a sampling config")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--port", type=int, default=7860, help="0: a free one (default: %(default)s)")
    parser.add_argument("--host", default=LOOPBACK, help="address to listen on; 0.0.0.0: every machine may connect")
    parser.add_argument("--users", metavar="FILE", help="who may sign in: a line NAME:PASSWORD for each user")
    parser.add_argument("--models", metavar="FOLDER", help="offer the trained runs below it as models, too")
    parser.add_argument("--per-user", type=int, default=3, help="videos that one user may have in the queue")
    parser.add_argument("--previews", type=int, default=5, help="looks into each video while it is made; 0: none")
    arguments = parser.read(argv)
    return run_main(
        lambda: web_command(
            arguments.config,
            arguments.overrides,
            host=arguments.host,
            port=arguments.port,
            users=arguments.users,
            models=arguments.models,
            per_user=arguments.per_user,
            previews=arguments.previews,
        )
    )


def web_command(
    config: str,
    overrides: Sequence[str],
    *,
    host: str = LOOPBACK,
    port: int = 7860,
    users: str | None = None,
    models: str | None = None,
    per_user: int = 3,
    previews: int = 5,
) -> int:
    """Serve the page until Ctrl-C or SIGTERM; returns the exit code."""
    if not 0 <= port <= 65535 or per_user < 1 or previews < 0:
        raise ConfigError(
            f"command line: --port {port} --per-user {per_user} --previews {previews}; allowed: ports 0 to 65535, 1 video "
            "or more per user, 0 previews or more"
        )
    accounts = read_users(users) if users is not None else None
    loaded = load(config, overrides, SampleRun)
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError(f"opensora web needs gradio, which is not installed; run {INSTALL}")
    if host != LOOPBACK and accounts is None:
        logger().warning("web: everybody who reaches %s can use the page; set --users FILE for passwords", host)
    from opensora.cli.session import session, set_up_rank

    setup = set_up_rank(loaded.run, lambda size: 1)
    with session(setup) as ranks, tempfile.TemporaryDirectory(prefix="opensora-web-") as private:
        # Gradio puts what visitors send, and copies of what they see, into the folder for temporary files, which it
        # looks up when it is imported.
        tempfile.tempdir = private
        try:
            from opensora.web.job_queue import JobQueue
            from opensora.web.sample_service import SampleService, trained_runs
            from opensora.web.site import build_site

            runs = trained_runs(models) if models is not None else []
            service = SampleService(config, overrides, ranks.world.device, setup.run.dtype, runs, previews)
            queue = JobQueue(service.sample, per_user=per_user)
            with contextlib.suppress(KeyboardInterrupt):  # the way to end it
                serve(build_site(service, queue, host, accounts), port, host)
            queue.close()
        finally:
            tempfile.tempdir = None
    return 0


def read_users(path: str) -> list[tuple[str, str]]:
    """(name, password) of each line NAME:PASSWORD. Raises ConfigError, which quotes no password."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--users: {path} cannot be read ({error}); it has a line NAME:PASSWORD for each user"
        ) from error
    users = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, colon, password = line.partition(":")
        if not (name.strip() and colon and password):
            raise ConfigError(f"--users: {path}, line {number}: not NAME:PASSWORD; correct it")
        users.append((name.strip(), password))
    if not users:
        raise ConfigError(f"--users: {path} names no user; it has a line NAME:PASSWORD for each")
    return users
