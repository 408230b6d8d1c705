"""Render the drawings of assets/objects: one sheet, in the order of the folder's names.json.

Run: python -m tools.assets.render_objects package/icons.json assets/objects
icons.json comes with the npm package @iconify-json/fluent-emoji-flat; see assets/objects/README.md.
"""

import argparse
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opensora.datasets.object_drawings import COLUMNS, NAMES_FILE, SHEET_FILE, SIDE
from opensora.errors import DataError, OpenSoraError
from tools.packages import require_packages

if TYPE_CHECKING:
    from PIL.Image import Image


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("icons", type=Path, help="icons.json of the package")
    parser.add_argument("folder", type=Path, help="holds names.json; drawings.png is written there")
    arguments = parser.parse_args(argv)
    try:
        sheet = render_sheet(read_json(arguments.icons), read_json(arguments.folder / NAMES_FILE))
        sheet.save(arguments.folder / SHEET_FILE, optimize=True)
    except OpenSoraError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(arguments.folder / SHEET_FILE)
    return 0


def render_sheet(icons: Mapping[str, Any], names: Mapping[str, str]) -> "Image":
    """The drawings side by side, RGBA. icons: of the package; names: of a drawing here -> in the package. Raises DataError."""
    from PIL import Image

    missing = sorted(set(names.values()) - set(icons["icons"]))
    if missing:
        raise DataError(f"{NAMES_FILE}: the package has no drawing {', '.join(missing)}; correct the names")
    rows = -(-len(names) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * SIDE, rows * SIDE))
    for number, icon in enumerate(names.values()):
        row, column = divmod(number, COLUMNS)
        sheet.paste(render(icons, icon, SIDE), (column * SIDE, row * SIDE))
    return sheet


def render(icons: Mapping[str, Any], icon: str, side: int) -> "Image":
    """One drawing of the package, RGBA, side x side pixels."""
    require_packages(["resvg_py"])
    import resvg_py
    from PIL import Image

    box = f"0 0 {icons['width']} {icons['height']}"
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" width="{side}" height="{side}">'
    png = resvg_py.svg_to_bytes(svg_string=f"{svg}{icons['icons'][icon]['body']}</svg>")
    return Image.open(io.BytesIO(bytes(png)))


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); correct the path") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: found no table of names; allowed: a JSON object; correct the file")
    return content


if __name__ == "__main__":
    sys.exit(main())
