"""HTML and SVG. Only `tag` inserts text into a page, and it escapes all text.

So text from outside (names of parameters, a configuration, the content of a file) can never become an element or an
attribute.
"""

import html
import re
from collections.abc import Iterable

_EMPTY_ELEMENTS = {"meta"}  # HTML has no closing tag for these
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class Markup(str):
    """Text that is already markup. Only this module and constants make it."""


def tag(element: str, *content: str, **attributes: object) -> Markup:
    """An element. content: text, which is escaped, or `Markup`. attributes: `class_` is class, and `text_anchor` is
    text-anchor.

    An attribute that is None is left out.
    """
    given = "".join(
        f' {name.strip("_").replace("_", "-")}="{escaped(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if element in _EMPTY_ELEMENTS:
        return Markup(f"<{element}{given}>")
    return Markup(f"<{element}{given}>{joined(content)}</{element}>")


def joined(parts: Iterable[str]) -> Markup:
    """Concatenates text, which is escaped, and `Markup`."""
    return Markup("".join(part if isinstance(part, Markup) else escaped(part) for part in parts))


def escaped(text: str) -> str:
    """Converts text to markup that shows it. Characters that cannot be shown or written (control characters, lone
    surrogates) become U+FFFD."""
    return html.escape(_UNPRINTABLE.sub("\ufffd", text))
