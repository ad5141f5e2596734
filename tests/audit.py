"""Known holes in the packages of this environment (``make audit``), by pip-audit.

pip-audit by itself finds "no known vulnerabilities" in packages that its index does not know, or does not answer for.
Here one sentence says what was checked and what was not, and where nothing was, that is a failure.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def verdict(report: dict[str, Any]) -> tuple[int, str]:
    """The exit code, and what to say of pip-audit's report."""
    packages = report["dependencies"]
    unchecked = [package["name"] for package in packages if "skip_reason" in package]
    checked = len(packages) - len(unchecked)
    holes = [
        f"{package['name']} {package['version']}: {hole['id']}, mended in {' '.join(hole['fix_versions']) or 'none'}"
        for package in packages
        for hole in package.get("vulns", ())
    ]
    if not checked:
        return 2, f"nothing was checked: the index answers for none of the {len(packages)} packages"
    said = f"{checked} packages checked, {len(holes)} known holes"
    if unchecked:
        said += f"; not checked, because the index does not answer for them: {', '.join(unchecked)}"
    return int(bool(holes)), "\n".join([said, *holes])


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "report.json")
        command = [sys.executable, "-m", "pip_audit", "--local", "--skip-editable", "--progress-spinner", "off"]
        result = subprocess.run([*command, "-f", "json", "-o", path], capture_output=True, text=True, check=False)
        if not path.exists():
            why = (result.stderr.strip().splitlines() or ["pip-audit says nothing"])[-1]
            code, said = 2, f"nothing was checked: {why}"
        else:
            code, said = verdict(json.loads(path.read_text(encoding="utf-8")))
    print(said)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
