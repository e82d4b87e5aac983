"""Makes patterns of `--override-tensor` by a grammar: some mean another thing to Python, and some the engine refuses."""

from __future__ import annotations

from random import Random

SIGNS = ("[.]", r"\.", ".", r"\x2e", r"\u002e", "[^a-z0-9_]", r"\W", "[.-9]", r"[\.]", "[^_[:alnum:]]", "[^]")
DIGITS = (
    r"\d+",
    "[[:digit:]]+",
    "[0-9]{1}",
    "[3-9]",
    r"[\d]*?",
    "(3|4|1.)",
    "([0-9])\\1",
    "[^.]*",
    r"[1-2]\d",
    "[[:DIGIT:]]{2}",
    "6|blk.7",
)
NAMES = (
    "ffn_.*_exps",
    "ffn_(up|down|gate)_exps",
    "attn_[[:alpha:]_]+",
    "ffn_up",
    "attn_(k|v)_b",
    r"ffn_(?=down)\w+",
    "ffn_(?!gate).*s",
    r"\S+",
)
ENDS = ("", "$", r"[.]weight$", r"\b", r"\.\w+", "[^]]", "[]a]", r"\Z", "(?:_exps)?[.]")
STARTS = ("", "^", r"\b", r"\B", r"\A", "^(?:blk)?", "(?!output)")
REFUSED = (
    "(?i)exps",
    "(?P<a>ffn)",
    "(?#x)exps",
    "(?<=k)exps",
    r"exps\1",
    "[[:nope:]]",
    "exps)",
    "(exps",
    "[exps",
    "[z-a]",
    "*exps",
    "exps{a}",
    r"[\B]",
    "[a--]",
)


def pattern(random: Random) -> str:
    """One pattern. One in ten is refused by the engine."""
    if random.random() < 0.1:
        return random.choice(REFUSED)
    start, name, end = random.choice(STARTS), random.choice(NAMES), random.choice(ENDS)
    if random.random() < 0.3:
        return f"{start}{name}{end}"
    return f"{start}blk{random.choice(SIGNS)}{random.choice(DIGITS)}{random.choice(SIGNS)}{name}{end}"
