"""
Measures what `pip install gpulab` puts on a disk, without extras: MB and number of distributions.

    python3 scripts/bench/size.py

It installs the locked packages and the gate's wheel into a folder under `build/`, with bytecode as pip does, and counts.
Standard library only.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import environment

TARGET_MB = 110
TARGET_DISTRIBUTIONS = 26
_COUNT = """
import importlib.metadata, json, sysconfig
names = sorted({d.name.lower() for d in importlib.metadata.distributions()})
print(json.dumps({"names": names, "site": sysconfig.get_paths()["purelib"]}))
"""


def main() -> int:
    """Install, count, print; 1 when a target is missed."""
    made = environment.prepare(environment.CHECKOUT / "build" / "size-environment", "run")
    environment.uv(
        made,
        "install",
        "--no-deps",
        "--reinstall",
        "--offline",
        "--compile-bytecode",
        str(_wheel()),
    )
    found = json.loads(subprocess.check_output([made.python, "-c", _COUNT], text=True))
    names = [name for name in found["names"] if name not in _TOOLS]
    folders = [path for path in Path(found["site"]).iterdir() if _is_counted(path)]
    sizes = {path.name: environment.disk_mb(path) for path in folders}
    bytecode = sum(environment.disk_mb(p) for path in folders for p in path.rglob("__pycache__"))
    total = sum(sizes.values())
    print(f"{total} MB on disk, {bytecode} MB of it bytecode (target {TARGET_MB} MB)")
    print(f"{len(names)} distributions (target {TARGET_DISTRIBUTIONS})")
    for name, mb in sorted(sizes.items(), key=lambda item: -item[1])[:8]:
        print(f"{mb:6} MB  {name}")
    return 0 if total <= TARGET_MB and len(names) <= TARGET_DISTRIBUTIONS else 1


# Every environment has them, whatever is installed into it.
_TOOLS = {"pip", "uv", "setuptools"}


def _is_counted(path: Path) -> bool:
    return path.name.split("-")[0] not in {*_TOOLS, "_distutils_hack", "pkg_resources", "distutils"}


def _wheel() -> Path:
    """The newest wheel of the gate; built by its step `wheel`."""
    wheels = sorted((environment.CHECKOUT / "build" / "wheel").glob("*.whl"))
    if not wheels:
        raise SystemExit("error: no wheel is built\n\nhint: `python3 scripts/test.py --only wheel`")
    return wheels[-1]


if __name__ == "__main__":
    environment.require_python()
    sys.exit(main())
