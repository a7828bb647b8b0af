"""The book builds without a warning, and every link and picture of it leads somewhere."""

import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest

from deepsimreg.paper.paths import NOTEBOOKS
from deepsimreg.paths import PROJECT

pytestmark = pytest.mark.xdist_group(__name__)  # one build for all


class Page(HTMLParser):
    """Links, pictures, scripts, ids and tags of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.loaded, self.undescribed, self.ids, self.tags = [], [], [], set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.add(tag)
        self.ids.add(found.get("id"))
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        own = not found.get("src", "").startswith("_static")
        if tag == "img" and own and ("_images" in found.get("alt", "") or " " not in found.get("alt", "")):
            self.undescribed.append(found.get("src"))
        if tag in ("img", "script") and found.get("src"):
            self.loaded.append(found["src"])
        if tag == "link" and found.get("rel") == "stylesheet":
            self.loaded.append(found["href"])


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    folder = tmp_path_factory.mktemp("book")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", "-b", "html", "."]
    options = ["-d", folder / "doctrees", folder / "html"]
    done = subprocess.run([*command, *options], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = folder.joinpath("html").rglob("*.html")
    return {path: Page(path.read_text()) for path in pages if "_static" not in path.parts}


def test_every_chapter_and_page_is_in_it(book):
    names = {path.stem for path in book}
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} <= names
    assert {path.stem for path in (PROJECT / "docs").glob("*.md")} <= names


def test_every_picture_says_what_it_shows(book):
    assert not {path.name: page.undescribed for path, page in book.items() if page.undescribed}


def test_links_and_pictures_lead_somewhere(book):
    for path, page in book.items():
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme or link.startswith("#"):
                continue
            target = (path.parent / unquote(parts.path)).resolve()
            assert target.exists(), f"{path.name}: {link}"
            if parts.fragment and target in book:
                assert unquote(parts.fragment) in book[target].ids, f"{path.name}: {link}"


def test_nothing_is_loaded_from_elsewhere(book):
    loaded = {one for page in book.values() for one in page.loaded}
    assert loaded
    assert not [one for one in loaded if urlsplit(one).scheme not in ("", "data")]


def test_equations_are_drawn_by_the_browser(book):
    (page,) = (page for path, page in book.items() if path.stem == "03_registration")
    assert {"math", "mfrac", "msub"} <= page.tags
