"""Plain text from files, and the text that every Python ships."""

import codecs
from collections.abc import Sequence
from pathlib import Path

_KINDS = (  # how files begin that are certainly no text
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "compressed by gzip"),
    (b"BZh", "compressed by bzip2"),
    (b"\xfd7zXZ\x00", "compressed by xz"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"%PDF-", "a PDF"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
)
_MARKS = (  # byte order marks; that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def default_text() -> str:
    """The help pages of Python's own ``pydoc``, in alphabetical order: about 465,000 characters of English prose."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise FileNotFoundError(
            "this Python comes without pydoc_data, the default text; give a text of your own with --data.path"
        ) from None
    return "\n".join(topics[name] for name in sorted(topics))


def read_files(files: Sequence[Path], encoding: str = "utf-8") -> str:
    """The files' text, joined with a line break where one lacks it; ``\\r\\n`` and ``\\r`` are read as ``\\n``.

    A byte order mark at a file's start overrides ``encoding`` and is not part of the text.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is not text of its encoding, or there is no such encoding.
    """
    check_encoding(encoding)
    texts = [text for file in files if (text := _read_text(file, encoding))]
    return "".join(text if text.endswith("\n") else text + "\n" for text in texts[:-1]) + "".join(texts[-1:])


def check_encoding(encoding: str) -> None:
    """Raises ValueError where Python knows no text encoding of this name."""
    try:
        b"a".decode(encoding)
    except UnicodeError:  # one byte is not always a symbol
        pass
    except (LookupError, ValueError):
        raise ValueError(f"unknown encoding {encoding!r}; want a name that Python knows, such as 'utf-8'") from None


def _read_text(file: Path, encoding: str) -> str:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise type(error)(f"'{file}' cannot be read: {error.strerror or error}") from None
    if kind := _kind(content):
        raise ValueError(f"'{file}' is {kind}, not text: unpack or convert it")
    encoding = _mark(content) or encoding
    try:
        text = content.decode(encoding)
        text.encode("utf-8")  # what has no UTF-8 could be written to no file
    except UnicodeError as error:
        place = ""
        if isinstance(error, UnicodeDecodeError):
            line = content.count(b"\n", 0, error.start) + 1
            place = f" (byte {error.start}, in line {line}, cannot be decoded)"
        raise ValueError(
            f"'{file}' is not {encoding} text{place}; name its encoding with --data.encoding, or leave the file out"
        ) from None
    if _is_utf_16(content) and "\0" in text:
        raise ValueError(
            f"every other byte of '{file}' is 0, so it seems to be UTF-16 without a byte order mark; name its encoding "
            f"with --data.encoding, utf-16-le or utf-16-be"
        )
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _is_utf_16(content: bytes) -> bool:
    """Whether nearly all even bytes are 0 and no odd ones, or the other way round, as in UTF-16 of a Latin script."""
    halves = [content[start:4096:2] for start in (0, 1)]
    zeros = [half.count(0) / max(len(half), 1) for half in halves]
    return len(content) > 3 and min(zeros) == 0 and max(zeros) > 0.9


def not_text(file: Path, encoding: str = "utf-8") -> str | None:
    """What ``file`` is, where its first bytes show that it is no text: ``a zip archive``, ``a binary file``, ..."""
    with open(file, "rb") as opened:
        head = opened.read(4096)
    if kind := _kind(head):
        return kind
    if b"\0" not in head or _mark(head) or codecs.lookup(encoding).name != "utf-8":
        return None
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # a symbol may end after the head
    except UnicodeDecodeError:
        return "a binary file"
    return None


def _kind(head: bytes) -> str | None:
    kinds = [kind for start, kind in _KINDS if head.startswith(start)]
    return kinds[0] if kinds else "a tar archive" if head[257:262] == b"ustar" else None


def _mark(head: bytes) -> str | None:
    """The encoding of a byte order mark."""
    return next((encoding for mark, encoding in _MARKS if head.startswith(mark)), None)
