"""Write the examples into the pages that show them as diffs.

python docs/write_diffs.py
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"```diff\n(?:--- /dev/null\n\+\+\+ b/)?(examples/\w+\.py)\n.*?```", re.DOTALL)


def diff_of(file: str) -> str:
    """The diff that adds a file."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    return "\n".join(["--- /dev/null", f"+++ b/{file}", f"@@ -0,0 +1,{len(lines)} @@", *(f"+{line}" for line in lines)])


def written(page: str) -> str:
    """A page with the diffs as the examples are now."""
    return _BLOCK.sub(lambda block: f"```diff\n{diff_of(block[1])}\n```", page)


def main() -> None:
    """Rewrite the pages."""
    for path in sorted((ROOT / "docs").glob("*.md")):
        text = path.read_text(encoding="utf-8")
        if (new := written(text)) != text:
            path.write_text(new, encoding="utf-8")
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
