"""Public-domain prose from two Debian packages, cleaned and cut into chapters."""

import re
import struct
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path

AUSTEN_PACKAGE = "r-cran-janeaustenr"
BIBLE_PACKAGES = ("bible-kjv-text", "bible-kjv")
AUSTEN_FILE = Path("usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")

HEADING = re.compile(r"^(chapter|volume)\s+([ivxlc]+|\d+)\.?$", re.IGNORECASE)
END_MATTER = re.compile(r"^(finis|the end|a note on the text)$", re.IGNORECASE)
VERSE = re.compile(r"^\s+\d+ (?=\S)")
R_STRING_VECTOR = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Chapters to learn from, with the chapters of the same books that are never trained on."""

    train: list[str]
    held_out: list[str]


def fetch_packages(folder: Path) -> Path:
    """Download the Debian packages and unpack them without installing anything.

    Args:
        folder: Gets the `.deb` files; created if absent. Files already unpacked are kept.

    Returns:
        The root of the unpacked files.

    Raises:
        subprocess.CalledProcessError: `apt-get` or `dpkg` failed; `apt-get update` often helps.
    """
    root = folder / "root"
    if (root / AUSTEN_FILE).exists() and (root / "usr/bin/bible").exists():
        return root
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", AUSTEN_PACKAGE, *BIBLE_PACKAGES], cwd=folder, check=True)
    for package in sorted(folder.glob("*.deb")):
        subprocess.run(["dpkg", "-x", str(package), str(root)], check=True)
    return root


def read_packages(root: Path) -> Split:
    """Read the six novels and the King James Bible, and hold out every 25th chapter of each.

    Args:
        root: What `fetch_packages` returned.
    """
    novels = [chapters_of(lines) for lines in read_r_strings((root / AUSTEN_FILE).read_bytes())]
    return hold_out([*novels, read_bible(root)])


def read_files(paths: list[Path]) -> Split:
    """Read plain-text files, each a book, and hold out every 25th chapter of each.

    Args:
        paths: UTF-8 files; lines such as `CHAPTER IV` begin a chapter, and a book without any is
            cut every 40 paragraphs.
    """
    return hold_out([chapters_of(path.read_text().splitlines()) for path in paths])


def hold_out(books: list[list[str]], every: int = 25) -> Split:
    """Split each book by whole chapters, so that no held-out sentence has a trained neighbour.

    Args:
        books: The chapters of each book.
        every: One chapter of this many is held out; a shorter book gives its last one.
    """
    train: list[str] = []
    held_out: list[str] = []
    for chapters in books:
        first = min(every // 2, len(chapters) - 1)
        for index, chapter in enumerate(chapters):
            (held_out if index % every == first else train).append(chapter)
    return Split(train=train, held_out=held_out)


def chapters_of(lines: list[str]) -> list[str]:
    """Unwrap a book's lines into paragraphs, without headings, title page and end matter.

    Args:
        lines: The book; what stands before its first chapter heading is dropped.

    Returns:
        One string per chapter, its paragraphs separated by a blank line.
    """
    sections: list[list[str]] = [[]]
    for line in lines:
        if HEADING.match(line.strip()):
            sections.append([])
        elif END_MATTER.match(line.strip()):
            sections.append([])
            break
        else:
            sections[-1].append(line.rstrip())
    has_headings = len(sections) > 2
    chapters = [paragraphs_of(section) for section in sections[1 if has_headings else 0 :]]
    if not has_headings:
        whole = [paragraph for chapter in chapters for paragraph in chapter]
        chapters = [whole[first : first + 40] for first in range(0, len(whole), 40)]
    return ["\n\n".join(chapter) for chapter in chapters if chapter]


def paragraphs_of(lines: list[str]) -> list[str]:
    """Join lines between blank ones, with single spaces and without `_emphasis_` marks."""
    blocks = re.split(r"\n\s*\n", "\n".join(lines).replace("_", ""))
    return [" ".join(block.split()) for block in blocks if re.search(r"\w", block)]


def read_bible(root: Path) -> list[str]:
    """Print the King James Bible with the package's own reader, one verse a line.

    Args:
        root: Holds `usr/bin/bible` with its data under `usr/lib`.

    Returns:
        One string per chapter, without verse numbers.
    """
    printed = subprocess.run(
        [root / "usr/bin/bible", "-p", root / "usr/lib", "gen1:1-rev22:21"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout
    chapters: list[list[str]] = []
    for line in printed.splitlines():
        if VERSE.match(line):
            chapters[-1].append(VERSE.sub("", line).strip())
        elif not line.startswith(" ") and re.search(r" \d+$", line) and in_heading(line):
            chapters.append([])
        elif line.strip():
            chapters[-1][-1] += " " + line.strip()
    return ["\n".join(" ".join(verse.split()) for verse in chapter) for chapter in chapters]


def in_heading(line: str) -> bool:
    """Tell `2 Samuel 7` from a verse's line that happens to end in a number."""
    return re.fullmatch(r"(\d )?[A-Z][a-z]+( of [A-Z][a-z]+)? \d+", line) is not None


def read_r_strings(database: bytes) -> list[list[str]]:
    """Decode the character vectors of an R lazy-load database.

    Args:
        database: Chunks of a big-endian length and a zlib stream, each an R object serialized as
            XDR version 3 (R Internals, §1.8, https://cran.r-project.org/doc/manuals/R-ints.html).

    Returns:
        The strings of each vector, in file order.

    Raises:
        ValueError: A chunk is not a character vector.
    """
    vectors: list[list[str]] = []
    while database:
        stream = zlib.decompressobj()
        chunk = stream.decompress(database[4:])
        database = stream.unused_data
        (encoding_length,) = struct.unpack_from(">I", chunk, 14)
        at = 18 + encoding_length
        kind, count = struct.unpack_from(">II", chunk, at)
        if kind != R_STRING_VECTOR:
            raise ValueError(f"R object of type {kind}, expected type {R_STRING_VECTOR} (strings)")
        at += 8
        strings: list[str] = []
        for _ in range(count):
            (length,) = struct.unpack_from(">I", chunk, at + 4)
            strings.append(chunk[at + 8 : at + 8 + length].decode())
            at += 8 + length
        vectors.append(strings)
    return vectors
