"""
This host's settings of pip and uv, translated for a machine: which index, which folders, which certificates.

Folders of this host that the settings name are bound into the machine, read-only, at the same path.
"""

from __future__ import annotations

import configparser
import json
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"

# pip's settings that say where packages come from; a cache, a log or a target folder of this host means nothing in a machine.
_PIP = (
    "index-url",
    "extra-index-url",
    "find-links",
    "no-index",
    "trusted-host",
    "constraint",
    "timeout",
    "default-timeout",
    "retries",
)
_UV_LISTS = ("extra-index-url", "find-links", "index")
_UV = ("index-url", "no-index", "index-strategy", *_UV_LISTS)

# uv's variables -> setting; https://docs.astral.sh/uv/reference/environment/
_UV_VARIABLES = {
    "UV_INDEX_URL": "index-url",
    "UV_DEFAULT_INDEX": "index-url",
    "UV_EXTRA_INDEX_URL": "extra-index-url",
    "UV_INDEX": "extra-index-url",
    "UV_FIND_LINKS": "find-links",
    "UV_INDEX_STRATEGY": "index-strategy",
}


@dataclass(frozen=True)
class PackageSettings:
    """
    Where packages come from.

    Attributes:
        pip: pip's settings by their names in `pip.conf`.
        uv: uv's settings by their names in `uv.toml`.
    """

    pip: Mapping[str, str]
    uv: Mapping[str, object]

    def pip_conf(self) -> str:
        """The text of a machine's `/etc/pip.conf`."""
        settings = dict(self.pip) | {"cert": AUTHORITIES, "disable-pip-version-check": "true"}
        lines = [
            f"{name} = {value.replace(chr(10), chr(10) + '    ')}"
            for name, value in settings.items()
        ]
        return "[global]\n" + "".join(f"{line}\n" for line in lines)

    def uv_toml(self, *, cache: str) -> str:
        """
        The text of a machine's `/etc/uv/uv.toml`.

        The cache is another file system than the machine's disk, so a hard link is impossible; a symbolic link takes a
        tenth of the time of a copy, and the cache outlives every machine.
        """
        own = {"cache-dir": cache, "link-mode": "symlink", "system-certs": True}
        return _toml(
            own | {name: value for name, value in self.uv.items() if name != "index"}
        ) + _toml_tables(self.uv.get("index", []))

    def folders(self) -> list[Path]:
        """Folders and files of this host that the settings name."""
        words = [word for value in self.pip.values() for word in value.split()]
        words += [word for value in self.uv.values() for word in _texts(value)]
        return sorted({path for word in words if (path := _local(word)) is not None})


def read_settings(environ: Mapping[str, str], *, root: Path = Path("/")) -> PackageSettings:
    """
    Read this host's settings, with the precedence pip and uv give them.

    Args:
        environ: Names the user's home and overrides single settings.
        root: Where `/etc` is looked for.
    """
    home = Path(environ.get("HOME", "/root"))
    config = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    pip_files = [root / "etc/xdg/pip/pip.conf", root / "etc/pip.conf"]
    pip_files += [home / ".pip/pip.conf", config / "pip/pip.conf"]
    if environ.get("PIP_CONFIG_FILE"):
        pip_files.append(Path(environ["PIP_CONFIG_FILE"]))
    uv_files = [
        Path(environ.get("UV_CONFIG_FILE") or root / "etc/uv/uv.toml"),
        config / "uv/uv.toml",
    ]
    return PackageSettings(_pip_settings(pip_files, environ), _uv_settings(uv_files, environ))


def _pip_settings(files: Iterable[Path], environ: Mapping[str, str]) -> dict[str, str]:
    settings: dict[str, str] = {}
    for file in files:
        parser = configparser.RawConfigParser()
        with suppress(configparser.Error, UnicodeDecodeError):
            parser.read(file)
        for section in ("global", "install"):
            if parser.has_section(section):
                settings |= {
                    n.replace("_", "-"): value.strip() for n, value in parser.items(section)
                }
    variables = {
        n[4:].lower().replace("_", "-"): value
        for n, value in environ.items()
        if n.startswith("PIP_")
    }
    return {name: value for name, value in (settings | variables).items() if name in _PIP and value}


def _uv_settings(files: Iterable[Path], environ: Mapping[str, str]) -> dict[str, object]:
    settings: dict[str, object] = {}
    for file in files:
        with suppress(OSError, tomllib.TOMLDecodeError):
            settings |= tomllib.loads(file.read_text())
    for variable, name in _UV_VARIABLES.items():
        value = environ.get(variable, "")
        if value:
            settings[name] = value.replace(",", " ").split() if name in _UV_LISTS else value
    return {name: value for name, value in settings.items() if name in _UV}


def _toml(settings: Mapping[str, object]) -> str:
    """A string, a boolean or a list of strings in JSON is the same in TOML."""
    return "".join(
        f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in settings.items()
    )


def _toml_tables(tables: object) -> str:
    rows = tables if isinstance(tables, list) else []
    return "".join("\n[[index]]\n" + _toml(row) for row in rows if isinstance(row, dict))


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for part in value.values() for text in _texts(part)]
    return [text for part in value for text in _texts(part)] if isinstance(value, list) else []


def _local(word: str) -> Path | None:
    """
    The part of this host a setting points to; `None` for a URL or a path that is not there.

    An index is a folder `simple` whose pages may point to files beside it, so its parent is meant.
    """
    path = Path(unquote(urlsplit(word).path) if word.startswith("file:") else word)
    if not path.is_absolute() or not path.exists():
        return None
    return path.parent if path.name == "simple" and path.parent != Path("/") else path
