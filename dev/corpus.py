"""Real Chinese, English, code and technical text for development, from Debian's documentation and Python's library.

`python -m dev.corpus --output DIR` writes main.jsonl and stem.jsonl to train on, and the held-out domains zh.jsonl,
en.jsonl, code.jsonl and papers.jsonl. Packages are downloaded and unpacked, never installed. The same packages and
the same Python give the same files.
"""

import argparse
import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from html.parser import HTMLParser
from itertools import islice
from pathlib import Path
from typing import NamedTuple

HELD_OUT_BYTES = 200_000
_MAX_HELD_OUT_DOCUMENT_BYTES = 40_000
_MIN_DOCUMENT_CHARACTERS = 300
# Larger ones are indexes and whole books on one page.
_MAX_DOCUMENT_CHARACTERS = 400_000
_FORTUNES_PER_DOCUMENT = 16
_BLOCKS = frozenset(
    [
        "p",
        "div",
        "li",
        "tr",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "pre",
        "br",
        "dt",
        "dd",
        "table",
        "ul",
        "ol",
        "section",
        "blockquote",
    ]
)
_HIDDEN = frozenset(["script", "style", "head", "nav", "footer"])
_SKIPPED_LIBRARY = frozenset(
    ["test", "tests", "site-packages", "__pycache__", "idlelib", "encodings", "pydoc_data", "lib2to3", "turtledemo"]
)
_MATHEMATICS = re.compile(
    r"/(statistics|fractions|random|_pydecimal|heapq|bisect|colorsys|numbers|_strptime|datetime|calendar|ipaddress"
    r"|hashlib|hmac|secrets|graphlib|functools|operator|tracemalloc|profile|pickletools|dis|opcode|ast)\.py$"
)


class Pick(NamedTuple):
    """Some files of a package, and how to read one of them as documents."""

    package: str
    pattern: str
    read: Callable[[Path], Iterable[str]]


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _HIDDEN:
            self._hidden += 1
        elif tag in _BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in _HIDDEN:
            self._hidden = max(0, self._hidden - 1)
        elif tag in _BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)


def _plain(path: Path) -> Iterator[str]:
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    yield content.decode("utf-8", errors="replace")


def _html(path: Path) -> Iterator[str]:
    for page in _plain(path):
        parser = _Text()
        parser.feed(page)
        yield "".join(parser.parts)


def _manual(path: Path) -> Iterator[str]:
    for page in _plain(path):
        lines = [re.sub(r"^\.[A-Za-z]+ ?", "", line) for line in page.split("\n") if not re.match(r"['.]\\\"", line)]
        text = re.sub(r"\\f(\[\w*\]|\(\w\w|.)|\\[&/,|^%]|\\s[+-]?\d", "", "\n".join(lines))
        yield text.replace("\\-", "-").replace("\\e", "\\").replace("\\(aq", "'").replace("\\(bu", "•")


def _fortunes(path: Path) -> Iterator[str]:
    entries = iter(re.sub(r"\x1b?\[\d*m", "", next(_plain(path))).split("\n%\n"))
    while group := list(islice(entries, _FORTUNES_PER_DOCUMENT)):
        yield "\n\n".join(group)


CHINESE = [
    Pick("fortunes-zh", "usr/share/games/fortunes/*[a-z0-9]", _fortunes),
    Pick("debian-reference-zh-cn", "usr/share/debian-reference/*.zh-cn.html", _html),
    Pick("debian-faq-zh-cn", "usr/share/doc/debian/FAQ/zh-cn/*.html", _html),
    Pick("maint-guide-zh-cn", "usr/share/doc/maint-guide-zh-cn/html/*.html", _html),
    Pick("manpages-zh", "usr/share/man/zh_CN/*/*.gz", _manual),
]
ENGLISH = [
    Pick("anarchism", "usr/share/doc/anarchism/html/*.html", _html),
    Pick("debian-reference-en", "usr/share/debian-reference/*.en.html", _html),
    Pick("debian-faq", "usr/share/doc/debian/FAQ/*.en.html", _html),
    Pick("debian-policy", "usr/share/doc/debian-policy/policy.html/*.html", _html),
    Pick("harden-doc", "usr/share/doc/harden-doc/html/en-US/*.html", _html),
    Pick("developers-reference", "usr/share/developers-reference/*.html", _html),
    Pick("fortunes", "usr/share/games/fortunes/[c-w]*[a-z]", _fortunes),
]
TECHNICAL = [
    Pick("python3.11-doc", "usr/share/doc/python3.11/html/_sources/**/*.txt", _plain),
    Pick("maxima-doc", "usr/share/doc/maxima-doc/html/maxima_*.html", _html),
]


def main() -> int:
    """Write the corpus and print its sizes; exit code 1 when packages cannot be had."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    output: Path = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    cache = _cache()
    try:
        zh = _documents(_read_packages(CHINESE, cache))
        en = _documents(_read_packages(ENGLISH, cache))
        technical = _documents(_read_packages(TECHNICAL, cache))
    except subprocess.CalledProcessError as error:
        print(f"{' '.join(error.cmd)} failed: run `apt-get update` first: {error.stderr.strip()}", file=sys.stderr)
        return 1
    library = list(_library())
    code = _documents(text for path, text in library if not _MATHEMATICS.search(path))
    mathematics = _documents(text for path, text in library if _MATHEMATICS.search(path))

    held_out = {"zh": _held_out(zh), "en": _held_out(en), "code": _held_out(code)}
    held_out["papers"] = _held_out(technical)
    hidden = {text for texts in held_out.values() for text in texts}
    main_texts = [*zh, *_up_to(en, 6_000_000), *_up_to(code, 4_000_000)]
    written = {
        "main": [text for text in _shuffled(main_texts) if text not in hidden],
        "stem": [text for text in _shuffled([*technical, *mathematics]) if text not in hidden],
        **held_out,
    }
    for name, texts in written.items():
        _write(output / f"{name}.jsonl", texts)
    return 0


def _cache() -> Path:
    base = (
        os.environ.get("SKYWORK_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skywork"
    )
    return Path(base) / "corpus"


def _read_packages(picks: Iterable[Pick], cache: Path) -> Iterator[str]:
    for pick in picks:
        root = _unpacked(pick.package, cache)
        paths = [path for path in sorted(root.glob(pick.pattern)) if path.is_file() and path.suffix != ".dat"]
        for path in paths:
            yield from pick.read(path)


def _unpacked(package: str, cache: Path) -> Path:
    root = cache / package
    if root.exists():
        return root
    cache.mkdir(parents=True, exist_ok=True)
    if not list(cache.glob(f"{package}_*.deb")):
        _run(["apt-get", "download", "-q", package], cache)
    deb = min(cache.glob(f"{package}_*.deb"))
    partial = cache / f"{package}.partial"
    _run(["dpkg-deb", "-x", str(deb), str(partial)], cache)
    partial.rename(root)
    return root


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)


def _library() -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if not _SKIPPED_LIBRARY & set(path.relative_to(root).parts):
            yield path.as_posix(), path.read_text(encoding="utf-8", errors="replace")


def _documents(texts: Iterable[str]) -> list[str]:
    """Return the texts tidied and without duplicates, in the order of their hashes."""
    tidy = (re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t\r\f\v]+\n", "\n", text)).strip() for text in texts)
    return _shuffled({text for text in tidy if _MIN_DOCUMENT_CHARACTERS <= len(text) <= _MAX_DOCUMENT_CHARACTERS})


def _shuffled(texts: Iterable[str]) -> list[str]:
    return sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())


def _held_out(documents: list[str]) -> list[str]:
    return _up_to([text for text in documents if len(text.encode()) <= _MAX_HELD_OUT_DOCUMENT_BYTES], HELD_OUT_BYTES)


def _up_to(documents: list[str], limit_bytes: int) -> list[str]:
    chosen, held_bytes = [], 0
    for text in documents:
        if held_bytes >= limit_bytes:
            break
        chosen.append(text)
        held_bytes += len(text.encode())
    return chosen


def _write(path: Path, texts: list[str]) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    temporary.replace(path)
    size_bytes = sum(len(text.encode()) for text in texts)
    print(f"{path}: {len(texts):,} documents, {size_bytes / 1e6:.2f} MB of text")


if __name__ == "__main__":
    sys.exit(main())
