"""Distinguish English captions from those in other languages, without a model: by their letters and their small words.

Limits: a text of few words in another Latin script without any of that language's words below passes, and so does an
English one made of names. Words that English shares with another language count for both.
"""

import functools
import re

_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")  # die-cast is one word, d'un two
_LATIN = re.compile(r"[A-Za-zÀ-ɏ]")
_LETTER = re.compile(r"[^\W\d_]")
_MOST_FOREIGN = 0.2  # share of letters outside the Latin script
_ENOUGH = 6  # words of a text that has at least one small word of its language

ENGLISH = (
    "a an and are as at be been behind being below between but by can do does down each for from front had has "
    "have he her here his how i in inside into is it its just left like many more most moves near next no not "
    "of off on one onto or other out outside over right she slowly so some something still than that the their "
    "them then there they this three through to toward towards two under up very was we were what when where "
    "which while who with without you your above across after against along also among another around away "
    "back background before both camera close foreground scene view shot video woman man people person white "
    "black red blue green wearing standing sitting walking running looking holding moving"
)
OTHERS = {
    "German": (
        "der die das und ein eine einen einem einer ist sind im mit auf von zu zum zur den dem des nicht sich auch "
        "aus bei nach über vor wird werden während ihr ihre sein seine er sie es durch steht läuft hinter neben"
    ),
    "French": (
        "le la les un une des du de et est sont dans sur avec pour par qui que il elle ils elles au aux ce cette "
        "ces se son sa ses en pas plus d l à tandis devant derrière"
    ),
    "Spanish": (
        "el la los las un una unos unas de del y en con por para que se su sus al es está están como mientras lo "
        "le más hacia sobre desde hay muy"
    ),
    "Italian": (
        "il lo la gli le un una uno di del della dei delle e è sono in nel nella con per che si su sul sulla da "
        "dal mentre al alla suo sua più"
    ),
    "Portuguese": (
        "o a os as um uma uns umas de do da dos das e em no na nos nas com por para que se seu sua ao à é está "
        "estão enquanto mais sobre pela pelo"
    ),
    "Dutch": (
        "de het een en van in op met voor te is zijn dat die naar door over bij uit aan wordt terwijl zich niet "
        "ook haar hij zij"
    ),
    "Swedish, Norwegian, Danish": (
        "en ett och i på med av som är den det de till för från över sig hon han ikke og er til fra et at der mens "
        "medan"
    ),
    "Polish": "i w na z się jest do po nad przez oraz który która jego jej są od za",
    "Czech": "a v na s se je do po nad přes který která jeho jsou od za ve",
    "Turkish": "bir ve ile bu için de da üzerinde olan gibi doğru sonra",
    "Indonesian": "di yang dan dengan ke dari sebuah seorang untuk pada ini itu sedang seekor",
    "Vietnamese": "một và trên của trong là đang với các người có được",
    "Hungarian": "a az egy és van hogy nem meg egyik fut a mellett",
    "Finnish": "ja on se että kun hän joka ovat sekä mutta",
    "Romanian": "un o și în pe cu de la din este sunt care spre",
}


def other_language(text: str) -> str | None:
    """None for English text, else the language or the script that the text seems to be written in."""
    letters = _LETTER.findall(text)
    if not letters:
        return "no language: it has no letters"
    foreign = sum(not _LATIN.match(letter) for letter in letters)
    if foreign > _MOST_FOREIGN * len(letters):
        return f"a script other than Latin ({foreign} of {len(letters)} letters)"
    words = [word.lower() for word in _WORD.findall(text)]
    english, others = _small_words()
    own = sum(word in english for word in words)
    language, hits = max(
        ((name, sum(word in small for word in words)) for name, small in others.items()), key=lambda x: x[1]
    )
    marked = sum(not letter.isascii() for letter in letters)  # English words have hardly an accent
    if hits > own or (hits == own and hits and marked):
        return language
    if own == 0 and (len(words) >= _ENOUGH or marked > 1):
        return "an unknown language (none of its words is a common English one)"
    return None


@functools.cache
def _small_words() -> tuple[frozenset[str], dict[str, frozenset[str]]]:
    return frozenset(ENGLISH.split()), {name: frozenset(words.split()) for name, words in OTHERS.items()}
