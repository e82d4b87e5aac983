r"""Reads the patterns of `--override-tensor` as the engine does, and translates them for Python.

The engine uses std::regex in its ECMAScript grammar, as libstdc++ implements it. Python's `re` reads many patterns in another way:
`\A` is the letter A for the engine, `[[:digit:]]` is a class, and `[]a]` is an empty class before `a]`. So this module parses the
grammar itself (bits/regex_scanner.tcc and regex_compiler.tcc), and writes a pattern for Python that uses only what is clear in both.
"""

from __future__ import annotations

import re
import string
from functools import lru_cache

from r1prov.offload.setting import RefusedError, UnknownArgumentError

_CONTROLS = {"0": "\0", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_WORD, _SPACE = string.ascii_letters + string.digits + "_", " \t\n\v\f\r"
_ASCII = frozenset(map(chr, range(128)))
_PRINTED = frozenset(map(chr, range(32, 127)))
_CLASSES = {
    "d": frozenset(string.digits),
    "w": frozenset(_WORD),
    "s": frozenset(_SPACE),
    "alnum": frozenset(string.ascii_letters + string.digits),
    "alpha": frozenset(string.ascii_letters),
    "blank": frozenset(" \t"),
    "cntrl": _ASCII - _PRINTED,
    "digit": frozenset(string.digits),
    "graph": _PRINTED - {" "},
    "lower": frozenset(string.ascii_lowercase),
    "print": _PRINTED,
    "punct": frozenset(string.punctuation),
    "space": frozenset(_SPACE),
    "upper": frozenset(string.ascii_uppercase),
    "xdigit": frozenset(string.hexdigits),
}
_MOST_STATES = 100_000
"""The size at which the engine refuses a pattern (_GLIBCXX_REGEX_STATE_LIMIT). It unfolds repetitions."""

_MOST_NESTED = 50
"""The most groups in each other that r1prov reads, because the parser calls itself for each."""


@lru_cache(maxsize=1024)
def compiled(pattern: str) -> re.Pattern[str]:
    """A pattern for Python that finds what the engine finds with `pattern`, in names of ASCII letters.

    Raises:
        RefusedError: The engine refuses the pattern. The message goes on from the pattern.
        UnknownArgumentError: The pattern has something that r1prov does not translate.
    """
    if not pattern.isascii():
        raise UnknownArgumentError("has signs that are not ASCII, and r1prov does not know how the engine reads them")
    return re.compile(_Parser(pattern).whole(), re.ASCII | re.DOTALL)


class _Parser:
    """A recursive descent over one pattern. Each method takes what it names from the text and returns it as Python writes it.

    Attributes:
        text: The pattern.
        at: The position of the next sign.
        groups: The number of groups that were opened.
        open: The numbers of the groups that are not closed yet.
        nested: The number of parentheses that are not closed yet.
    """

    def __init__(self, text: str) -> None:
        self.text, self.at, self.groups, self.nested = text, 0, 0, 0
        self.open: list[int] = []

    def whole(self) -> str:
        found, states = self.alternatives()
        if self.at < len(self.text):
            what = "closes a parenthesis that is not open" if self.text[self.at] == ")" else "has nothing to repeat"
            raise RefusedError(f"{what} at `{self.text[self.at :]}`")
        self.check(states)
        return found

    def check(self, states: int) -> None:
        if states > _MOST_STATES:
            raise RefusedError("repeats too much: the engine unfolds it to more than 100,000 states")

    def next_is(self, sign: str) -> bool:
        """Whether the text goes on with `sign`, which is taken then."""
        found = self.text.startswith(sign, self.at)
        self.at += len(sign) * found
        return found

    def sign(self) -> str:
        if self.at == len(self.text):
            raise RefusedError("ends too early")
        self.at += 1
        return self.text[self.at - 1]

    def alternatives(self) -> tuple[str, int]:
        """Alternatives between `|`, and the states that the engine needs for them."""
        found, states = [], 0
        while True:
            terms, needed = self.terms()
            found.append(terms)
            states += needed + 1
            if not self.next_is("|"):
                return "|".join(found), states

    def terms(self) -> tuple[str, int]:
        """What stands one after the other up to `|`, `)`, the end, or a quantifier with nothing before it."""
        found, states = [], 0
        while self.at < len(self.text) and self.text[self.at] not in "|)*+?{":
            term, needed = self.term()
            found.append(term)
            states += needed
        return "".join(found), states

    def term(self) -> tuple[str, int]:
        sign = self.sign()
        if sign in "^$":
            return {"^": r"\A", "$": r"\Z"}[sign], 1
        if sign == "\\" and (self.next_is("b") or self.next_is("B")):
            return f"\\{self.text[self.at - 1]}", 1
        if sign == "(" and (self.next_is("?=") or self.next_is("?!")):
            start = self.text[self.at - 2 : self.at]
            inner, states = self.inside()
            return f"({start}{inner})", states + 1
        return self.repeated(*self.atom(sign))

    def atom(self, sign: str) -> tuple[str, int]:
        """One sign, class, group or reference, which may be repeated."""
        if sign == ".":
            return r"[^\n\r]", 1
        if sign == "[":
            return self.bracket(), 1
        if sign == "(":
            return self.group()
        if sign != "\\":
            return re.escape(sign), 1
        if self.text[self.at : self.at + 1] in tuple("123456789"):
            return self.reference(), 1
        return _written(self.escaped()), 1

    def group(self) -> tuple[str, int]:
        if self.next_is("?:"):
            inner, states = self.inside()
            return f"(?:{inner})", states + 2
        if self.next_is("?"):
            raise RefusedError(f"has a group that the engine does not know at `(?{self.text[self.at :]}`")
        self.groups += 1
        number = self.groups
        self.open.append(number)
        inner, states = self.inside()
        self.open.remove(number)
        return f"({inner})", states + 2

    def inside(self) -> tuple[str, int]:
        """What stands between parentheses, up to and with the closing one."""
        self.nested += 1
        if self.nested > _MOST_NESTED:
            raise UnknownArgumentError(f"has more than {_MOST_NESTED} parentheses in each other")
        found = self.alternatives()
        if not self.next_is(")"):
            left = self.text[self.at :]
            raise RefusedError(f"has nothing to repeat at `{left}`" if left else "does not close a parenthesis")
        self.nested -= 1
        return found

    def reference(self) -> str:
        digits = re.compile(r"\d+").match(self.text, self.at)
        assert digits  # noqa: S101 - for the type checker: the caller has seen one
        self.at = digits.end()
        number = int(digits[0][:9])
        if number > self.groups or number in self.open:
            raise RefusedError(f"refers to the group {digits[0]}, which is not closed before")
        return f"(?:\\{number})"

    def escaped(self) -> str | frozenset[str]:
        """The sign or the class behind a backslash. Any sign without a meaning of its own stands for itself."""
        sign = self.sign()
        if sign in _CONTROLS:
            return _CONTROLS[sign]
        if sign in "dsw":
            return _CLASSES[sign]
        if sign in "DSW":
            return _ASCII - _CLASSES[sign.lower()]
        if sign == "c":
            return self.sign()
        if sign in "xu":
            digits = "".join(self.sign() for _ in range(2 if sign == "x" else 4))
            if not set(digits) <= set(string.hexdigits):
                raise RefusedError(f"has `\\{sign}{digits}`, which is no hexadecimal number")
            if int(digits, 16) not in range(128):
                raise UnknownArgumentError(f"has `\\{sign}{digits}`, which is no ASCII sign")
            return chr(int(digits, 16))
        return sign

    def bracket(self) -> str:
        """A class in brackets. `]` ends it at once, even as the first sign. A `-` behind a range stands for itself."""
        negated, found = self.next_is("^"), set[str]()
        before: str | frozenset[str] | None = None  # what a range may begin with; None at the start and behind a range
        first = True
        while not self.next_is("]"):
            is_dash = self.next_is("-")
            if not is_dash or first or before is None:
                before = "-" if is_dash else self.in_bracket()
                found |= {before} if isinstance(before, str) else before
            elif self.next_is("]"):
                found.add("-")
                break
            elif isinstance(before, frozenset):
                raise RefusedError("has a range that begins with a class")
            else:
                end = "-" if self.next_is("-") else self.in_bracket()
                if isinstance(end, frozenset) or end < before:
                    raise RefusedError(f"has a range from `{before}` that does not end behind it")
                found.update(map(chr, range(ord(before), ord(end) + 1)))
                before = None
            first = False
        return _written(_ASCII - found if negated else frozenset(found))

    def in_bracket(self) -> str | frozenset[str]:
        """One sign or class between brackets."""
        if self.next_is("[:"):
            name, end, rest = self.text[self.at :].partition(":")
            if not end or not rest.startswith("]") or name.lower() not in _CLASSES:
                raise RefusedError(f"has the unknown class `[:{name}:]`")
            self.at += len(name) + 2
            return _CLASSES[name.lower()]
        if self.next_is("[.") or self.next_is("[="):
            raise UnknownArgumentError("has a collating symbol, which r1prov does not translate")
        sign = self.sign()
        if sign != "\\":
            return sign
        if self.text[self.at : self.at + 1] in tuple("B123456789"):
            raise RefusedError(f"has `\\{self.text[self.at]}` between brackets")
        return self.escaped()

    def repeated(self, atom: str, states: int) -> tuple[str, int]:
        """An atom with its quantifiers, of which the engine takes any number. What is found does not depend on their greed."""
        while self.at < len(self.text) and self.text[self.at] in "*+?{":
            quantifier, times = self.sign(), 1
            if quantifier == "{":
                times = self.interval()
                quantifier = f"{{{times}}}"
            self.next_is("?")
            atom, states = f"(?:{atom}){quantifier}", states * max(times, 1) + 2
            self.check(states)
        return atom, states

    def interval(self) -> int:
        """The number of `{2}`. A comma never comes here, because it ends a rule of `--override-tensor`."""
        found = re.compile(r"(\d+)\}").match(self.text, self.at)
        if not found:
            raise RefusedError(f"has no number of repetitions at `{{{self.text[self.at :]}`")
        self.at = found.end()
        count = int(found[1][:9])
        self.check(count)
        return count


def _written(signs: str | frozenset[str]) -> str:
    """A sign or a set of signs as Python writes it."""
    if isinstance(signs, str):
        return re.escape(signs)
    if not signs:
        return "(?!)"
    codes = "".join(rf"\x{ord(sign):02x}" for sign in sorted(signs))
    return f"[{codes}]"
