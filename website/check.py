"""Checks the built site: `python -m website.check`, or `make docs-check`.

Reads all pages: links, fragments and pictures must exist, and nothing may be loaded from another server.
Where there is a Chromium, it opens a sample of pages in the light theme at the width of a laptop, and in
the dark theme at the width of a phone. It looks for broken pictures, formulas that were not set, and for
content that is wider than the page, and writes screenshots.
"""

import argparse
import functools
import html.parser
import http.server
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from urllib.parse import unquote

SAMPLE = (
    "index.html",
    "first_ten_minutes.html",
    "concepts.html",
    "members/index.html",
    "members/emo_pilot.html",
    "members/emo_airy.html",
    "reference/emo_torch_members.html",
    "reference/emo_optax_pieces.html",
    "quality_of_training.html",
    "integrations_jax.html",
    "behaviour_changes.html",
    "parity.html",
    "yardstick/tables.html",
    "notebooks/choose_nothing.html",
    "faq.html",
)
"""The pages that are opened in a browser: one of each kind, and the pages with the widest tables."""
WIDTHS = {"laptop": 1280, "phone": 500}
PROBE = """
<script>
window.addEventListener("load", () => setTimeout(() => {
  const wide = [...document.querySelectorAll("article *")].filter(element => {
    const box = element.getBoundingClientRect();
    if (box.width === 0 || box.right <= document.documentElement.clientWidth + 1) return false;
    for (let each = element; each && each.tagName !== "ARTICLE"; each = each.parentElement)
      if (["auto", "scroll", "hidden"].includes(getComputedStyle(each).overflowX)) return false;
    return true;
  }).map(element => element.tagName + ": " + element.textContent.trim().slice(0, 60));
  const images = [...document.images].filter(each => each.complete && !each.naturalWidth);
  const broken = images.map(each => each.src);
  const math = [...document.querySelectorAll(".math")];
  const formulas = math.filter(each => !each.querySelector("mjx-container")).length;
  const failed = [...document.querySelectorAll("mjx-merror")].map(each => each.textContent);
  const found = document.createElement("script");
  found.type = "application/json";
  found.id = "found";
  found.textContent = JSON.stringify({wide: wide.slice(0, 5), broken, formulas, failed});
  document.body.append(found);
}, 2500));
</script>
"""
DARK = """
<script>
document.addEventListener("DOMContentLoaded", () => { document.body.dataset.theme = "dark"; });
</script>
"""


class Page(html.parser.HTMLParser):
    """Collects the links of a page, the files that it loads, and its names that can be linked to."""

    def __init__(self, text: str) -> None:
        """Reads a page."""
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.names: set[str] = set()
        self.without_words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes one element."""
        given = {key: value or "" for key, value in attrs}
        self.names |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag in ("img", "script", "source") and given.get("src"):
            self.loaded.append(given["src"])
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            self.loaded.append(given.get("href", ""))
        if tag == "img" and not given.get("alt"):
            self.without_words.append(given.get("src", ""))


def problems_in_files(site: Path) -> list[str]:
    """Returns the errors of links and pictures, found without a browser."""
    pages = {
        path: Page(path.read_text()) for path in sorted(site.rglob("*.html")) if "_static" not in path.parts
    }
    found = []
    for path, page in pages.items():
        name = path.relative_to(site)
        found += [
            f"{name}: loads {each} from a server" for each in page.loaded if re.match(r"(https?:)?//", each)
        ]
        found += [
            f"{name}: a picture without words: {each}"
            for each in page.without_words
            if "notebooks" not in str(name)
        ]
        for link in [*page.links, *page.loaded]:
            if re.match(r"[a-z]+:|//", link):
                continue
            target, _, fragment = link.partition("#")
            file = (path.parent / unquote(target.partition("?")[0])).resolve() if target else path
            file = file / "index.html" if file.is_dir() else file
            if not file.exists():
                found.append(f"{name}: {link} does not exist")
            elif fragment and file in pages and unquote(fragment) not in pages[file].names:
                found.append(f"{name}: {link} has no such place")
    return sorted(set(found))


def chromium() -> str | None:
    """Returns the path of a Chromium, or `None`."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for path in map(shutil.which, names) if path), None)


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the site; a page gets the probe, and with `?dark` the dark theme."""

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        """Answers with a file."""
        name, _, query = self.path.partition("?")
        path = Path(self.translate_path(name))
        if path.suffix != ".html" or not path.exists():
            super().do_GET()
            return
        text = path.read_text().replace("</body>", PROBE + (DARK if query == "dark" else "") + "</body>")
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def open_page(browser: str, address: str, width: int, screenshot: Path) -> dict[str, object]:
    """Opens a page in a browser, and returns the results of the probe."""
    with tempfile.TemporaryDirectory() as folder:
        flags = (
            "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
            "--disable-background-networking --disable-component-update --disable-sync --hide-scrollbars "
            "--virtual-time-budget=6000"
        )
        command = [browser, *flags.split(), f"--user-data-dir={folder}", f"--window-size={width},1600"]
        run = subprocess.run(
            [*command, "--dump-dom", f"--screenshot={screenshot}", address],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
    found = re.search(
        r'<script type="application/json" id="found">(.*?)</script>', run.stdout, flags=re.DOTALL
    )
    return dict(json.loads(found[1])) if found else {"no answer": run.stderr[-300:]}


def problems_in_browser(site: Path, browser: str, screenshots: Path, sample: tuple[str, ...]) -> list[str]:
    """Returns the errors of pages in a browser; writes screenshots."""
    screenshots.mkdir(parents=True, exist_ok=True)
    handler = functools.partial(_Handler, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found = []
    for name in sample:
        for theme, size in (("light", "laptop"), ("dark", "phone")):
            address = f"http://127.0.0.1:{server.server_port}/{name}" + ("?dark" if theme == "dark" else "")
            picture = screenshots / f"{name.replace('/', '_').removesuffix('.html')}_{theme}_{size}.png"
            wrong = open_page(browser, address, WIDTHS[size], picture)
            found += [f"{name} ({theme}, {size}): {key}: {value}" for key, value in wrong.items() if value]
            print(f"looked at {name}, {theme}, {size}", flush=True)
    server.shutdown()
    return found


def main(arguments: list[str] | None = None) -> int:
    """Checks the site, and says where the screenshots lie.

    Returns:
        0, or 1 where something is wrong.
    """
    parser = argparse.ArgumentParser(prog="python -m website.check", description=__doc__)
    parser.add_argument("--site", type=Path, default=Path("build/site/html"), help="folder of the pages")
    parser.add_argument("--screenshots", type=Path, default=Path("build/site/screenshots"))
    parser.add_argument("--pages", nargs="*", default=SAMPLE, help="pages to open in the browser")
    parser.add_argument("--no-browser", action="store_true", help="check only the files")
    given = parser.parse_args(arguments)
    if not (given.site / "index.html").exists():
        parser.exit(2, f"there is no site in {given.site}: run `make docs` first\n")
    print("links and pictures", flush=True)
    found = problems_in_files(given.site)
    browser = None if given.no_browser else chromium()
    if browser:
        found += problems_in_browser(given.site, browser, given.screenshots, tuple(given.pages))
        print(f"screenshots: {given.screenshots}")
    elif not given.no_browser:
        print("no Chromium was found: the pages were not opened in a browser")
    print("\n".join(found) or "nothing is wrong")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
