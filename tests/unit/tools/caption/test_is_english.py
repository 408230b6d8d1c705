import pytest

from opensora.datasets.table import read_table
from tools.caption.is_english import other_language

ENGLISH = """a red bike; bikes race; dog running on beach; A man.; Static shot of a mountain lake.; Tokyo skyline at night;
A samurai eats ramen in Kyoto.; The camera pans left. A blue square.; Portrait of a woman; red circle moves left;
Two chefs make tagliatelle alla bolognese in a trattoria; Big Buck Bunny stretches; A café in São Paulo at dawn.; Sunset;
An old man in a poncho and a sombrero walks along the Calle de la Reina in Madrid.; 4K drone footage of a coast;
El Capitan at sunrise; A woman drinks an espresso macchiato.; Die-cast toy cars race"""
OTHER = """un perro corre por la playa; Ein Hund läuft am Strand entlang.; Un chien court sur la plage; Собака бежит по пляжу;
一只狗在海滩上奔跑; 犬がビーチを走る; 개가 해변을 달린다; Um cachorro corre na praia; Een hond rent over het strand;
En hund springer på stranden; Seekor anjing berlari di pantai; Pies biegnie po plaży; Köpek sahilde koşuyor;
un cane corre sulla spiaggia; कुत्ता समुद्र तट पर दौड़ता है; كلب يركض على الشاطئ; Con chó chạy trên bãi biển;
Der rote Kreis bewegt sich nach links.; La camara se mueve hacia la derecha mientras un hombre camina; Ein Mann in einem Wald.;
Koira juoksee rannalla ja haukkuu.; Un câine aleargă pe plajă; Egy kutya fut a tengerparton; Pes běží po pláži"""


def split(text: str) -> list[str]:
    return [each.strip() for each in text.split(";")]


def test_english_captions_pass() -> None:
    captions = split(ENGLISH) + [row["text"] for row in read_table("configs/demo/captions.csv").rows]
    assert {text: language for text in captions if (language := other_language(text))} == {}


def test_other_languages_do_not() -> None:
    assert [text for text in split(OTHER) if other_language(text) is None] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ein Hund läuft über die Straße.", "German"),
        ("Un chien court dans la rue.", "French"),
        ("一只狗在海滩上奔跑", "a script other than Latin (9 of 9 letters)"),
        ("12 34", "no language: it has no letters"),
    ],
)
def test_language_is_named(text: str, expected: str) -> None:
    assert other_language(text) == expected
