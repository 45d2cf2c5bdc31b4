"""A strict scanner of JSON text (RFC 8259 with the demands of RFC 7493), which works on bytes and keeps every byte as it is.

The module json is not used for this: it accepts NaN, unpaired surrogates, a byte order mark and repeated names, recurses as
deep as the text asks for, and does not say where a value begins and ends.

The scanner does not recurse, and its time is proportional to the length of the text.
"""

from __future__ import annotations

import json
import re
from typing import Any, List, NamedTuple, Optional, Set

_SPACE = re.compile(rb"[ \t\n\r]*")
# A high surrogate is followed by a low one, and no low one stands alone. What is valid UTF-8 has no surrogates.
_STRING = re.compile(
    rb'"[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u(?:[0-9a-cA-CefEF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}'
    rb'|[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}))[^"\\\x00-\x1f]*)*"'
)
_NUMBER_OR_WORD = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null")
_DIGITS = re.compile(rb"0|[1-9][0-9]{0,15}")

#: The greatest integer that every JSON implementation reads exactly.
MAX_INTEGER = 9007199254740991

WHITE_SPACE = b" \t\n\r"

_OBJECT, _ARRAY = 0x7B, 0x5B  # { and [
_END = {_OBJECT: 0x7D, _ARRAY: 0x5D}


class JSONError(ValueError):
    """The text is not JSON, or is nested too deep."""


class Member(NamedTuple):
    """A member of an object, where it stands in the text."""

    name: bytes  # as it is written, with its quotes
    start: int  # of the value
    end: int  # behind the value


def check_utf8(text: bytes) -> None:
    """Raises JSONError unless the text is valid UTF-8."""
    try:
        text.decode("utf-8", "strict")
    except UnicodeDecodeError:
        raise JSONError("not UTF-8") from None


def check_value(text: bytes, depth: int) -> None:
    """Raises JSONError unless the text is one value, without white space around it, nested at most so deep."""
    check_utf8(text)
    if not text or _skip(text, 0, depth) != len(text):
        raise JSONError("not one JSON value")


def members(text: bytes, depth: int) -> List[Member]:
    """Returns the members of the object that the text is, which may have white space around it.

    The object counts for the depth. The text must be valid UTF-8: see check_utf8.
    """
    found: List[Member] = []
    end = _skip(text, _space(text, 0), depth, found)
    if _space(text, end) != len(text):
        raise JSONError("text behind the value")
    return found


def unescape(token: bytes) -> str:
    """Returns the text of a string that the scanner has read, quotes included."""
    if b"\\" not in token:
        return token[1:-1].decode("utf-8")
    text: str = json.loads(token)
    return text


def integer(token: bytes) -> int:
    """Returns the number of a token of digits alone, 0 to MAX_INTEGER, without a leading zero; else raises JSONError."""
    if _DIGITS.fullmatch(token):
        value = int(token)
        if value <= MAX_INTEGER:
            return value
    raise JSONError("not an integer from 0 to 9007199254740991")


def is_string(token: bytes) -> bool:
    return token[:1] == b'"'


def _space(text: bytes, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None  # it matches the empty text too
    return match.end()


def _skip(text: bytes, at: int, depth: int, outer: Optional[List[Member]] = None) -> int:
    """Returns the position behind the value at this one. With outer, the value must be an object, whose members are added."""
    size = len(text)
    # The objects and arrays that are open: what opened each, and of an object the names that it has so far.
    kinds: List[int] = []
    names: List[Set[str]] = []
    name, start = b"", 0  # of the member of the outermost object
    if outer is not None and text[at : at + 1] != b"{":
        raise JSONError("not an object")
    while True:
        # A value begins here.
        byte = text[at] if at < size else -1
        if len(kinds) == 1 and outer is not None:
            start = at
        opened = False
        if byte == _OBJECT or byte == _ARRAY:
            if len(kinds) == depth:
                raise JSONError("nested too deep")
            kinds.append(byte)
            names.append(set())
            at = _space(text, at + 1)
            opened = True
        else:
            match = (_STRING if byte == 0x22 else _NUMBER_OR_WORD).match(text, at)
            if match is None:
                raise JSONError("no value")
            at = match.end()
        # A value has ended here, or an object or array was opened.
        while True:
            if not opened:
                if len(kinds) == 1 and outer is not None:
                    outer.append(Member(name, start, at))
                if not kinds:
                    return at
                at = _space(text, at)
            byte = text[at] if at < size else -1
            if byte == _END[kinds[-1]]:
                kinds.pop()
                names.pop()
                at += 1
                opened = False
                continue
            if not opened:
                if byte != 0x2C:
                    raise JSONError("no comma")
                at = _space(text, at + 1)
            break
        if kinds[-1] == _OBJECT:
            match = _STRING.match(text, at)
            if match is None:
                raise JSONError("no name")
            token = match.group()
            plain = unescape(token)
            if plain in names[-1]:
                raise JSONError("a name twice")
            names[-1].add(plain)
            if len(kinds) == 1 and outer is not None:
                name = token
            at = _space(text, match.end())
            if text[at : at + 1] != b":":
                raise JSONError("no colon")
            at = _space(text, at + 1)


def to_json(value: Any, depth: int, limit: int) -> bytes:
    """Returns the JSON text of a value of Python: None, bool, int, float, str, and lists, tuples and dictionaries of them.

    Raises JSONError for what JSON does not have, and OverflowError for what cannot fit into so many bytes.
    """
    # The module json would turn numbers and None into names, and follow references as deep and as often as they go. So
    # the value is walked first. Each value takes a byte at least.
    budget = limit
    open_values: List[Any] = [(value, 0)]
    while open_values:
        item, level = open_values.pop()
        budget -= 1
        if isinstance(item, str):
            budget -= len(item)
        elif isinstance(item, dict):
            _check_level(level, depth)
            budget -= len(item)
            for key, inner in item.items():
                if not isinstance(key, str):
                    raise JSONError("a key that is not a string")
                budget -= len(key)
                open_values.append((inner, level + 1))
                if budget < 0:
                    break
        elif isinstance(item, (list, tuple)):
            _check_level(level, depth)
            budget -= len(item)
            if budget >= 0:
                open_values.extend((inner, level + 1) for inner in item)
        elif item is not None and not isinstance(item, (bool, int, float)):
            raise JSONError(f"a value of type {type(item).__name__}, which JSON does not have")
        if budget < -2:  # the outermost value has no comma
            raise OverflowError
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")
    except (ValueError, TypeError, RecursionError):
        # NaN, an infinity, an integer of too many digits, or an unpaired surrogate in a string.
        raise JSONError("a number or text that JSON does not have") from None
    check_value(text, depth)
    return text


def _check_level(level: int, depth: int) -> None:
    if level >= depth:
        raise JSONError("nested too deep")
