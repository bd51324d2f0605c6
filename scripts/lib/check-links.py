#!/usr/bin/python3
"""check-links REPOSITORY BOOK: follows every link of the built book in BOOK, and those of README.md, as far as
they lead to files. What leads to the Internet is not asked for. Says what is wrong, and ends with 1."""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

repository, book = (Path(argument).resolve() for argument in sys.argv[1:3])
# Made by mdBook, of all pages or of none.
MADE = {"print.html", "toc.html", "404.html", "index.html"}


class Page(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.ids, self.links = set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if attributes.get("id"):
            if attributes["id"] in self.ids:
                self.links.append((None, attributes["id"]))
            self.ids.add(attributes["id"])
        link = attributes.get({"a": "href", "img": "src", "object": "data"}.get(tag, ""))
        if link:
            self.links.append((link, self.getpos()[0]))


pages = {path: Page(path) for path in book.rglob("*.html") if path.name not in MADE}
faults, count = [], 0


def follow(here, base, link):
    """Why the link leads nowhere, or nothing. `base` is the file that it stands in."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None if parts.scheme in ("https", "http", "mailto") else f"{here}: {link}: what kind of link is that?"
    target = (base.parent / unquote(parts.path)).resolve() if parts.path else base
    if target.suffix == ".md" and target.name != "SUMMARY.md" and target.is_relative_to(repository / "docs"):
        target = book / target.relative_to(repository / "docs").with_suffix(".html")
    if target.name in MADE and target.parent == book:
        return None
    if not target.exists():
        return f"{here}: {link}: there is no such file"
    if parts.fragment and (target not in pages or unquote(parts.fragment) not in pages[target].ids):
        return f"{here}: {link}: there is no such place"
    return None


for path, page in sorted(pages.items()):
    name = str(path.relative_to(book))
    for link, place in page.links:
        count += 1
        if link is None:
            faults.append(f"{name}: two places are called #{place}")
        elif fault := follow(name, path, link):
            faults.append(fault)

readme = repository / "README.md"
for link in re.findall(r"\]\(([^)\s]+)\)", readme.read_text(encoding="utf-8")):
    count += 1
    if fault := follow("README.md", readme, link):
        faults.append(fault)

for source in sorted((repository / "docs").rglob("*.md")):
    name = source.relative_to(repository / "docs")
    if name.name != "SUMMARY.md" and book / name.with_suffix(".html") not in pages:
        faults.append(f"docs/{name} is not in docs/SUMMARY.md")

for fault in faults:
    print(fault)
print(f"{len(pages)} pages, {count} links, {len(faults)} faults")
sys.exit(bool(faults) or not pages)
