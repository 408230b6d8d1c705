"""Aspect-ratio tables: for every resolution name the sizes (height, width) that clips of each ratio are trained at.

A name such as "480p" or "512" stands for a number of pixels; a ratio is named by height / width with two digits. Both
come from Open-Sora and are parts of its bucket names, so they are kept to the letter, with what differs by version:
1.1 lacks "2k", "2048", "2880"; 1.3 writes "1.00" for "1.0" and adds "<name>_16d", sizes cut down to multiples of 16.
The sizes of "256" and "2880" are PixArt's; "512", "1024" and "2048" are multiples of "256". The others lie near
sqrt(pixels * ratio), but no rounding rule gives them all, so they are written out.
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import Literal, NamedTuple

from opensora.errors import ConfigError

Version = Literal["1.1", "1.2", "1.3"]
Size = tuple[int, int]  # height, width in pixels


class Resolution(NamedTuple):
    """One resolution name: `num_pixels` nominally, and for each ratio's name the size."""

    num_pixels: int
    sizes: Mapping[str, Size]


# height / width, as named in 1.1 and 1.2
_SEVENTEEN = "0.38 0.43 0.48 0.50 0.53 0.54 0.56 0.62 0.67 0.75 1.00 1.33 1.50 1.78 1.89 2.00 2.08"
_FORTY = """
    0.25 0.26 0.27 0.28 0.32 0.33 0.35 0.4 0.42 0.48 0.5 0.52 0.57 0.6 0.68 0.72 0.78 0.82 0.88 0.94 1.0 1.07 1.13
    1.21 1.29 1.38 1.46 1.67 1.75 2.0 2.09 2.4 2.5 2.89 3.0 3.11 3.62 3.75 3.88 4.0
"""
_FORTY_2880 = """
    0.25 0.26 0.27 0.28 0.32 0.33 0.34 0.4 0.42 0.47 0.49 0.51 0.55 0.59 0.68 0.72 0.78 0.83 0.89 0.93 1.0 1.07 1.12
    1.21 1.28 1.39 1.47 1.7 1.82 2.03 2.13 2.39 2.5 2.92 3.0 3.12 3.68 3.82 3.95 4.0
"""
# heightxwidth in pixels, one per ratio
_SIZES = {
    "144p": """
        117x312 125x291 133x277 135x270 139x262 141x260 144x256 151x241 156x234 166x221 192x192 221x165 235x156
        256x144 263x139 271x135 277x132
    """,
    "240p": """
        196x522 210x490 222x462 226x452 232x438 236x436 240x426 252x404 262x393 276x368 320x320 370x278 392x262
        426x240 440x232 452x226 462x222
    """,
    "360p": """
        294x784 314x732 332x692 340x680 350x662 352x652 360x640 380x608 392x588 416x554 480x480 554x416 588x392
        640x360 660x350 678x340 692x332
    """,
    "480p": """
        392x1046 420x980 444x925 452x904 466x880 470x870 480x854 506x810 522x784 554x738 640x640 740x555 784x522
        854x480 880x466 906x454 924x444
    """,
    "720p": """
        588x1568 628x1466 666x1388 678x1356 698x1318 706x1306 720x1280 758x1212 784x1176 832x1110 960x960 1108x832
        1176x784 1280x720 1320x698 1358x680 1386x666
    """,
    "1080p": """
        882x2352 942x2198 998x2080 1018x2036 1048x1980 1058x1958 1080x1920 1138x1820 1176x1764 1248x1664 1440x1440
        1662x1246 1764x1176 1920x1080 1980x1048 2036x1018 2078x998
    """,
    "2k": """
        1176x3136 1256x2930 1330x2770 1358x2716 1398x2640 1412x2612 1440x2560 1518x2428 1568x2352 1662x2216
        1920x1920 2218x1664 2352x1568 2560x1440 2638x1396 2716x1358 2772x1330
    """,
    "4k": """
        1764x4704 1886x4400 1996x4158 2036x4072 2096x3960 2118x3918 2276x3642 2160x3840 2352x3528 2494x3326
        2880x2880 3326x2494 3528x2352 3840x2160 3958x2096 4072x2036 4156x1994
    """,
    "256": """
        128x512 128x496 128x480 128x464 144x448 144x432 144x416 160x400 160x384 176x368 176x352 176x336 192x336
        192x320 208x304 208x288 224x288 224x272 240x272 240x256 256x256 256x240 272x240 272x224 288x224 288x208
        304x208 320x192 336x192 352x176 368x176 384x160 400x160 416x144 432x144 448x144 464x128 480x128 496x128
        512x128
    """,
    "2880": """
        1408x5760 1408x5568 1408x5376 1408x5184 1600x4992 1600x4800 1600x4672 1792x4480 1792x4288 1920x4096
        1920x3904 1920x3776 2112x3840 2112x3584 2304x3392 2304x3200 2496x3200 2496x3008 2688x3008 2688x2880
        2880x2880 2880x2688 3008x2688 3008x2496 3200x2496 3200x2304 3392x2304 3584x2112 3840x2112 3904x1920
        4096x1920 4288x1792 4480x1792 4672x1600 4800x1600 4992x1600 5184x1408 5376x1408 5568x1408 5760x1408
    """,
}
_ORDER_4K = _SEVENTEEN.replace("0.56 0.62", "0.62 0.56")  # the position in the table decides ties
_ONLY_FROM_1_2 = ("2k", "2048", "2880")

# 1.1 names 0.54 and 2.08 for 1:1.85 and 25:12; 1.2 for 27:50 and, although that is 1.85, 50:27.
_RATIOS_1_1 = "3:8 9:21 12:25 1:2 9:17 1:1.85 9:16 5:8 2:3 3:4 1:1 4:3 3:2 16:9 17:9 2:1 25:12"
_RATIOS = "3:8 9:21 12:25 1:2 9:17 27:50 9:16 5:8 2:3 3:4 1:1 4:3 3:2 16:9 17:9 2:1 50:27"

# Clip lengths by name: 51 frames are one "x", and two seconds.
NUM_FRAMES = {f"{n}x": 51 * n for n in (1, 2, 4, 8, 16)} | {f"{2 * n}s": 51 * n for n in (1, 2, 4, 8, 16)}


@cache
def tables(version: Version = "1.3") -> Mapping[str, Resolution]:
    """Every resolution of a version by name."""
    resolutions = {name: Resolution(*_base(name)) for name in _SIZES}
    for factor in (2, 4, 8):  # of "256"
        sizes = {
            ratio: (factor * height, factor * width) for ratio, (height, width) in resolutions["256"].sizes.items()
        }
        resolutions[str(256 * factor)] = Resolution((256 * factor) ** 2, sizes)
    if version == "1.1":
        return {name: table for name, table in resolutions.items() if name not in _ONLY_FROM_1_2}
    if version == "1.3":
        resolutions = {name: _two_digits(table) for name, table in resolutions.items()}
        return resolutions | {f"{name}_16d": _multiples_of_16(table) for name, table in resolutions.items()}
    return resolutions


def resolution(name: str, version: Version = "1.3") -> Resolution:
    """One table; ConfigError for a name that the version does not have. "240x424" is a resolution of that one size."""
    resolutions = tables(version)
    if name not in resolutions:
        if re.fullmatch(r"[1-9]\d*x[1-9]\d*", name):
            return _one_size(_size(name))
        raise ConfigError(
            f"resolution: {name!r}; allowed: {', '.join(resolutions)} (Open-Sora {version}), or HEIGHTxWIDTH; name one of them"
        )
    return resolutions[name]


def closest_ratio(height: float, width: float, name: str, version: Version = "1.3") -> str:
    """The ratio's name nearest to height / width in the table of resolution `name`; the first of equals."""
    wanted = height / width
    return min(resolution(name, version).sizes, key=lambda ratio: abs(float(ratio) - wanted))


def ratio_names(version: Version = "1.3") -> Mapping[str, str]:
    """Map each ratio as people write it ("9:16", height first) to its name in the tables ("0.56")."""
    written = _RATIOS_1_1 if version == "1.1" else _RATIOS
    return dict(zip(written.split(), _SEVENTEEN.split(), strict=True))


def exact_ratio(written: str) -> float:
    """ "9:16" -> 0.5625."""
    height, width = written.split(":")
    return float(height) / float(width)


def image_size(name: str, ratio: str, version: Version = "1.3") -> Size:
    """(height, width) in pixels of resolution `name` at a ratio written as "9:16", height first.

    ConfigError for a resolution or ratio that the version does not have; the square resolutions ("256", "512", ...)
    have few of the ratios people write.
    """
    sizes, names = resolution(name, version).sizes, ratio_names(version)
    if names.get(ratio) not in sizes:
        allowed = [text for text, known in names.items() if known in sizes]
        raise ConfigError(
            f"aspect ratio: {ratio!r} at resolution {name!r}; allowed: {', '.join(allowed)}; name one of them or a height "
            "and width"
        )
    return sizes[names[ratio]]


def _base(name: str) -> tuple[int, Mapping[str, Size]]:
    ratios = {"256": _FORTY, "2880": _FORTY_2880, "4k": _ORDER_4K}.get(name, _SEVENTEEN).split()
    sizes = {ratio: _size(text) for ratio, text in zip(ratios, _SIZES[name].split(), strict=True)}
    height, width = sizes["1.0" if "1.0" in sizes else "1.78"]  # the size that gave the resolution its name
    return height * width, sizes


def _one_size(size: Size) -> Resolution:
    return Resolution(size[0] * size[1], {f"{size[0] / size[1]:.2f}": size})


def _size(text: str) -> Size:
    height, width = text.split("x")
    return int(height), int(width)


def _two_digits(table: Resolution) -> Resolution:
    return table._replace(sizes={f"{float(ratio):.2f}": size for ratio, size in table.sizes.items()})


def _multiples_of_16(table: Resolution) -> Resolution:
    sizes = {ratio: (height // 16 * 16, width // 16 * 16) for ratio, (height, width) in table.sizes.items()}
    return table._replace(sizes=sizes)
