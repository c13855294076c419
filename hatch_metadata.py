"""Makes the README's links absolute, and names the project's addresses, while a release is built.

The address of the repository is not written down here. GitHub's workflows name it in `GITHUB_SERVER_URL`
and `GITHUB_REPOSITORY`; without them the links stay as they are, which suits an installation from a clone.
"""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(!?\[[^\]]*\]\()(?!https?:|#)([^)\s]+\))")
PICTURE = re.compile(r"\.(?:png|svg)\)$")


class Addresses(MetadataHookInterface):
    """The hook of `tool.hatch.metadata.hooks.custom`."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """Sets `readme` and `urls`.

        Args:
            metadata: the table `project`, which is changed.
        """
        version = re.search(
            r'__version__ = "(.+)"', (Path(self.root) / "emo_shared/version.py").read_text()
        )
        assert version is not None
        text = (Path(self.root) / "README.md").read_text()
        url = repository_url()
        if url:
            text = with_absolute_links(text, url, f"v{version[1]}")
            metadata["urls"] = {
                "Repository": url,
                "Documentation": f"{url}/blob/v{version[1]}/docs/index.md",
                "Changelog": f"{url}/blob/v{version[1]}/CHANGELOG.md",
                "Issues": f"{url}/issues",
            }
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def repository_url() -> str | None:
    """Returns the address of the repository, if the environment names it."""
    name = os.environ.get("GITHUB_REPOSITORY")
    return f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{name}" if name else None


def with_absolute_links(text: str, url: str, tag: str) -> str:
    """Returns a page with links into the repository at a tag, as an index page needs them."""

    def replace(found: re.Match[str]) -> str:
        kind = "raw" if PICTURE.search(found[2]) else "blob"
        return f"{found[1]}{url}/{kind}/{tag}/{found[2]}"

    return LINK.sub(replace, text)
