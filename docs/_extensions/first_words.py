"""Links a word of the glossary to its entry where the word first occurs on a page."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

WORDS = {
    "owner": r"owners?",
    "key-slot": r"(?:key )?slots?",
    "root-key": r"root keys?",
    "data-key": r"data keys?",
    "epoch": r"epochs?",
    "scope": r"scopes?",
    "grant": r"grants?|granted",
    "seal": r"seal|sealed",
    "wrap": r"wraps?|wrapped",
    "unlocked-session": r"unlocked sessions?",
}
"""Each entry of the glossary that is linked, and how the word is written on a page."""
PAGES = ("index", "tutorial/", "how-to/", "explanation/", "reference/errors", "architecture", "contributing")
GLOSSARY = "glossary"


class FirstWords(SphinxPostTransform):
    """Headings, code, links and quoted messages keep their words as they are."""

    default_priority = 800
    formats = ("html",)

    def run(self, **_: Any) -> None:
        page = self.env.current_document.docname
        if not page.startswith(PAGES):
            return
        left = {anchor: re.compile(rf"\b(?:{word})\b", re.IGNORECASE) for anchor, word in WORDS.items()}
        target = self.app.builder.get_relative_uri(page, GLOSSARY)
        for paragraph in list(self.document.findall(nodes.paragraph)):
            for text in list(paragraph.findall(nodes.Text)):
                if not _is_prose(text):
                    continue
                self._link(text, left, target)
            if not left:
                return

    def _link(self, text: nodes.Text, left: dict[str, re.Pattern[str]], target: str) -> None:
        found = [
            (match.start(), anchor, match) for anchor, word in left.items() if (match := word.search(text))
        ]
        parts: list[nodes.Node] = []
        at = 0
        for start, anchor, match in sorted(found, key=lambda one: (one[0], -len(one[1]))):
            if start < at:
                continue
            del left[anchor]
            parts.append(nodes.Text(text[at:start]))
            link = nodes.reference("", match[0], internal=True, refuri=f"{target}#{anchor}")
            link["classes"].append("first-word")
            parts.append(link)
            at = match.end()
        if parts:
            text.parent.replace(text, [*parts, nodes.Text(text[at:])])


def _is_prose(text: nodes.Text) -> bool:
    node = text.parent
    while not isinstance(node, nodes.paragraph):
        if isinstance(node, (nodes.reference, nodes.literal, nodes.strong, nodes.emphasis)):
            return False
        node = node.parent
    return not isinstance(node.parent, (nodes.entry, nodes.caption))


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_post_transform(FirstWords)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
