"""Text from outside, made safe to print."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    r"""The text with control characters as escapes; line feeds and tabs are kept.

    Labels, prompts, responses and paths may hold escape sequences that would change the terminal,
    or bidirectional controls that reorder what is read.

    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) not in _CONTROLS else _escaped(char)
        for char in text
    )


def one_line(text: str) -> str:
    r"""The text on one line: control characters, line feeds and tabs as escapes.

    For messages, in which a label or a path may hold a line feed.

    >>> one_line("a\nb")
    'a\\nb'
    """
    escapes = {"\n": r"\n", "\t": r"\t", "\u2028": r"\u2028", "\u2029": r"\u2029"}
    return "".join(escapes.get(char, char) for char in printable(text))


# Control characters, surrogates that do not encode, and format characters such as U+202E.
_CONTROLS = ("Cc", "Cs", "Cf")


def _escaped(char: str) -> str:
    # Joiners are part of emoji and of many scripts.
    return char if char in "\u200c\u200d" else char.encode("unicode_escape").decode("ascii")
