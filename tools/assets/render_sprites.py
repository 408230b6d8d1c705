"""Render drawings of Fluent Emoji Flat as pictures with transparency, for tools.demo.varied_footage.

Run: python -m tools.assets.render_sprites package/icons.json sprites --count 500
icons.json comes with the npm package @iconify-json/fluent-emoji-flat; see assets/objects/README.md. The choice is random and
the same at every run; variants of skin, light and flags are left out.
"""

import argparse
import random
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from opensora.errors import OpenSoraError
from tools.assets.render_objects import read_json, render

LEFT_OUT = ("skin-tone", "dark", "light", "medium", "flag")  # in the names of variants that look nearly alike


def choose(names: Iterable[str], count: int) -> list[str]:
    """`count` names, or all that are left, in random order."""
    kept = sorted(name for name in names if not any(word in name for word in LEFT_OUT))
    random.Random(0).shuffle(kept)
    return kept[:count]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("icons", type=Path, help="icons.json of the package")
    parser.add_argument("folder", type=Path, help="the pictures go here, as NAME.png")
    parser.add_argument("--count", type=int, default=500, help="drawings (default: %(default)s)")
    parser.add_argument("--side", type=int, default=96, help="of a picture in pixels (default: %(default)s)")
    arguments = parser.parse_args(argv)
    try:
        icons = read_json(arguments.icons)
        arguments.folder.mkdir(parents=True, exist_ok=True)
        names = choose(icons["icons"], arguments.count)
        for name in names:
            render(icons, name, arguments.side).save(arguments.folder / f"{name}.png")
    except OpenSoraError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{arguments.folder}: {len(names)} pictures")
    return 0


if __name__ == "__main__":
    sys.exit(main())
