"""The server of the page: loopback only, with the clips by the numbers of their rows."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from opensora.datasets.decode import Frames
from opensora.errors import BadClip
from opensora.web.serve import LOOPBACK, make_app, mount
from tools.browse.clip_preview import ClipPreview
from tools.browse.marked_manifest import MarkedManifest
from tools.browse.page import build_page

if TYPE_CHECKING:
    import fastapi

_THUMBNAIL, _PICTURE = 240, 1280  # pixels


def build_app(manifest: MarkedManifest, folder: str, page_size: int) -> "fastapi.FastAPI":
    """The page at / and what it shows at /thumbnail/ROW, /picture/ROW and /clip/ROW. folder: private, for copies of clips."""
    import fastapi

    preview = ClipPreview(folder)
    app = make_app()

    def picture(row: int, widest: int) -> fastapi.Response:
        try:
            frame = preview.frame(manifest.row(row), widest)
        except IndexError:
            return fastapi.Response("no such row", 404, media_type="text/plain")
        except BadClip:
            return fastapi.Response(_UNREADABLE, media_type="image/svg+xml")
        return fastapi.Response(_jpeg(frame), media_type="image/jpeg")

    # Plain functions: they decode and encode, so that the server calls them in its threads.
    @app.get("/thumbnail/{row}")
    def thumbnail(row: int) -> fastapi.Response:
        return picture(row, _THUMBNAIL)

    @app.get("/picture/{row}")
    def whole_picture(row: int) -> fastapi.Response:
        return picture(row, _PICTURE)

    @app.get("/clip/{row}")
    def clip(row: int) -> fastapi.Response:
        try:
            path = preview.playable(manifest.row(row))
        except IndexError:
            return fastapi.Response("no such row", 404, media_type="text/plain")
        except BadClip as error:
            return fastapi.Response(str(error), 422, media_type="text/plain")
        return fastapi.responses.FileResponse(path, headers={"Cache-Control": "no-store"})

    page = build_page(manifest, preview, page_size)
    return mount(app, page, Path(__file__).parent, server_name=LOOPBACK, footer_links=[])


def _jpeg(frame: Frames) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=85)
    return file.getvalue()


_UNREADABLE = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="240" height="136"><rect width="240" height="136" fill="#bbb"/>'
    '<text x="120" y="72" text-anchor="middle" font-family="sans-serif" font-size="14" fill="#900">cannot be read</text></svg>'
)
