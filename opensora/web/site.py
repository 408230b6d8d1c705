"""The page of `opensora web` as an application that a server serves."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from opensora.web.job_queue import JobQueue
from opensora.web.page import build_page
from opensora.web.sample_service import SampleService
from opensora.web.serve import make_app, mount
from opensora.web.uploads import UploadLimits

if TYPE_CHECKING:
    import fastapi


def build_site(
    service: SampleService,
    queue: JobQueue,
    host: str,
    users: Sequence[tuple[str, str]] | None = None,
    limits: UploadLimits = UploadLimits(),
) -> "fastapi.FastAPI":
    """users: (name, password) of those who may use it; None: everybody who reaches it."""
    return mount(
        make_app(host),
        build_page(service, queue, limits),
        Path(__file__).parent,
        server_name=host,
        footer_links=["api"],
        auth=list(users) if users is not None else None,
        max_file_size=f"{limits.megabytes:.0f}mb",
    )
