"""Checks a release before it is built: the tag is the version, and the changelog has a date for it.

`python .github/check_release.py tag v0.1.0`; without a tag only the changelog and CITATION.cff are checked.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def problems(kind: str, name: str, root: Path = ROOT) -> list[str]:
    """Returns the errors of a release.

    Args:
        kind: "tag" or "branch".
        name: the name of the tag or of the branch.
        root: the folder of the repository.
    """
    found = re.search(r'__version__ = "(.+)"', (root / "emo_shared/version.py").read_text())
    version = found[1] if found else "?"
    wrong = []
    if kind == "tag" and name != f"v{version}":
        wrong.append(f"the tag is {name}, and emo_shared/version.py says {version}")
    if not re.search(
        rf"^## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)$", (root / "CHANGELOG.md").read_text(), flags=re.M
    ):
        wrong.append(f"CHANGELOG.md has no section '## {version} (YYYY-MM-DD)'")
    if f"\nversion: {version}\n" not in (root / "CITATION.cff").read_text():
        wrong.append(f"CITATION.cff does not have the version {version}")
    return wrong


if __name__ == "__main__":
    wrong = problems(*sys.argv[1:3])
    print("\n".join(wrong) or "the release is consistent")
    sys.exit(bool(wrong))
