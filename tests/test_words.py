"""One word for one idea, in plain English: words that are not used in code, messages and pages."""

import re
from collections import Counter
from pathlib import Path

from tests.harness import ROOT

# Lower-case words as a regular expression, and what to write instead. `BadImages` and `bad_images` read "bad images".
OUT = {
    "tells?|told|telling": "print, report, show, note",
    "wish(?:es|ed)?": "request, option",
    "mend(?:s|ed|ing)?": "fix",
    "gone": "missing, deleted",
    "hear[ds]?": "receive, reported",
    "refus(?:e|es|ed|ing|al)": "reject, raise",
    "odd": "unusual",
    "another run": "another experiment",
    "(?:stands?|standing|stood) in for": "replace",
    "by (?:itself|themselves)": "automatically, alone",
    "nobody can do without": "lower bound",
    "people": "users",
    "(?:is|are|was|were) to be": "must be",
    "(?:hangs?|hung) on": "depend on",
    "slips?": "typo, mistake",
    "who(?:m|se)?ever": "independent of who",
    "mov(?:e|es|ed|ing) on": "continue",
    "br(?:ings?|inging|ought)": "contain, return",
    "likest": "most similar",
    "dearer|dear": "more expensive",
    "(?:go|goes|going|went) on": "continue, resume",
    "(?:broken|bad|odd|damaged) (?:images?|pictures?|photos?)": "corrupt image",
    "alike": "duplicate, similar",
    "doubled": "duplicate",
    "life|lives": "attempt",
    "verbs?": "command",
    "pieces?": "chunk, part",
    "rooms?": "buffer, space",
    "strangers?": "another program",
    "runs? s? ?folders?": "run directory",
    "peers?": "other pipelines",
}
ALLOWED = (  # read before the words are searched for: what someone else named, and names that older runs left
    "told apart",  # of two results, in statistics
    "odd number",
    "odd pixels",
    "0 or odd",
    "lives jsonl",
    "life attempt heard previous end",
    "bad images csv",
    "max bad",
    "file tell",  # the offset in a file
)
PRIVATE = (  # class and constant names that gave way to those of PyTorch's vocabulary
    "Cluster|Feed|Draws|Views|Order|BlockOrder|Part|Journal|Lives|Ending|Stop|Behind|Page|Board|Trained|Material|Wish|Request|"
    "Garbage|Losses|MOMENT|PEOPLE|VERBS"
)
PAGES = sorted(path for path in ROOT.glob("**/*.md") if not any(p.startswith((".v", ".p")) for p in path.parts))
FILES = sorted(
    {
        *(path for kind in ("py", "js", "css", "html") for path in ROOT.glob(f"cls/**/*.{kind}")),
        *ROOT.glob("slurm/*"),
        *ROOT.glob("accelerate_configs/*"),
        *PAGES,
        ROOT / "train.py",
        ROOT / "pyproject.toml",
        ROOT / ".ci/run",
    }
)
LEFT: dict[str, int] = {}  # hits in a package that still wait for another word; may only shrink


def plain(text: str) -> str:
    """Lower-case words with one space between: names split, lines of a comment or a string joined."""
    return re.sub(r"[^a-z0-9]+", " ", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text).lower())


def found(text: str) -> list[str]:
    words = plain(text)
    for phrase in ALLOWED:
        words = words.replace(phrase, "")
    any_of = re.compile("|".join(f"(?P<_{number}>{out})" for number, out in enumerate(OUT)).join((r"\b(?:", r")\b")))
    uses = list(OUT.values())
    return [
        f"…{words[max(0, hit.start() - 40) : hit.end() + 40]}…: {hit[0]!r} -> {uses[int((hit.lastgroup or '_0')[1:])]}"
        for hit in any_of.finditer(words)
    ]


def test_the_words_that_are_out_are_found() -> None:
    for text in ("he is told", "toldYou", "a_wish", "class BadImages", "it goes\n    # on", "VERBS"):
        assert len(found(text)) == 1, text
    assert not found("lives.jsonl, an odd number, cannot be told apart, peerless, breaking bad")


def place(path: Path) -> str:
    """The package or the top directory of a file."""
    return "/".join(path.relative_to(ROOT).parts[:-1][:2]) or "."


def test_no_word_that_is_out_is_used() -> None:
    hits = {path: found(path.read_text()) for path in FILES}
    count: Counter[str] = Counter()
    for path, lines in hits.items():
        count[place(path)] += len(lines)
    wrong = {name for name in count | LEFT if count[name] != LEFT.get(name, 0)}
    lines = [
        f"{path.relative_to(ROOT)}: {line}" for path, lines in hits.items() for line in lines if place(path) in wrong
    ]
    changed = {name: f"{count[name]} hits, {LEFT.get(name, 0)} in LEFT" for name in sorted(wrong)}
    assert not wrong, "\n".join([str(changed), *lines])


def test_no_private_name_comes_back() -> None:
    names = re.compile(rf"^(?:class )?({PRIVATE})\b *[:(=]", re.M)
    assert {str(path): names.findall(path.read_text()) for path in FILES if names.search(path.read_text())} == {}
