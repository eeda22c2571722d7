"""Links from a page to the code are links to the repository on the site."""

from __future__ import annotations

import re
from typing import Any


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    """Called for each page."""
    return re.sub(r"\]\((?:\.\./)+(src|examples|tests)\b", rf"]({config.repo_url}/blob/main/\1", markdown)
