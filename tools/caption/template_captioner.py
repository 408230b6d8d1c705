"""`template`: captions from measured columns alone, the default that needs no model."""

from collections.abc import Sequence

from opensora.chat_client import Answer
from opensora.errors import BadClip
from opensora.registry import CAPTIONERS
from tools.caption.captioner import Captioner, Row
from tools.caption.template import describe, measure


@CAPTIONERS.register_module(name="template")
class TemplateCaptioner(Captioner):
    """Puts what was measured into words: camera and motion where tools.score wrote their columns, size, light and colors.

    It does not know what is in the picture.
    """

    label = "template"
    is_clean = True

    def caption(self, rows: Sequence[Row]) -> list[Answer | BadClip]:
        results: list[Answer | BadClip] = []
        for row in rows:
            try:
                results.append(Answer(describe(measure(row))))
            except BadClip as error:
                results.append(error)
        return results
