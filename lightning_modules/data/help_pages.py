"""Sentences with tagged entities that every Python ships: its own help pages, whose markup says what is what."""

import re

from lightning_modules.data.text_files import default_text

# In this order: the markup, and the type of what it marks.
# In this order: the markup, and the type of what it marks.
_MARKUP = re.compile(r'"(?P<code>[^"\n]+(?:\n[^"\n]+)?)"|(?<![\w*])\*(?P<term>\w[^*\n]*)\*(?!\w)')
_TOKEN = re.compile("\\w+(?:[.'\u2019-]\\w+)*|[^\\w\\s]")


def tagged_help_pages() -> str:
    """The prose of Python's help pages in CoNLL columns with BIO tags, about 53,000 tokens.

    The pages mark code with quotation marks (``"len()"``), names and terms with asterisks (``*iterable*``). The marks
    are taken away and become the tags of the types ``code`` and ``term``: to be found is what the pages' authors had
    marked. What is laid out as code, lists or tables is left out.
    """
    lines: list[str] = []
    for paragraph in re.split(r"\n\s*\n", default_text()):
        words = paragraph.strip()
        if not re.match("[A-Z“(]", words) or words[-1] not in ".:)" or re.search(r"::=|>>>|\n {4}", paragraph):
            continue
        lines += _sentences(words)
    return "\n".join(lines) + "\n"


def _sentences(paragraph: str) -> list[str]:
    lines: list[str] = []
    position = 0
    for match in [*_MARKUP.finditer(paragraph), None]:
        plain = paragraph[position : match.start() if match else None]
        for token in _TOKEN.findall(plain):
            lines.append(f"{token}\tO")
            if token in ".?!":
                lines.append("")
        if match:
            kind = match.lastgroup
            assert kind is not None  # every alternative of the pattern is a named group
            tokens = _TOKEN.findall(match[kind])
            lines += [f"{token}\t{'I' if k else 'B'}-{kind}" for k, token in enumerate(tokens)]
            position = match.end()
    return [*lines, ""]
