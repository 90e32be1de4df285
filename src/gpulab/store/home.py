"""The user's folder: where each thing lies. Refuses to mix the state of two profiles."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpulab.errors import WrongUsage
from gpulab.store.config import Config, read_config
from gpulab.store.files import private_folder

_PROFILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Folder:
    """
    What belongs to one profile; made when first used, readable by its owner only.

    Attributes:
        shared: Root of the folder whose key, known hosts and kept work are used instead of own ones; `None` for own ones. So the
            accounts of a class share one key, while each has its journal, ledger and cache to itself: credits must never mix.
    """

    root: Path
    shared: Path | None = None

    @property
    def journal(self) -> Path:
        """Launch intents and their results, JSON Lines."""
        return self.root / "journal.jsonl"

    @property
    def ledger(self) -> Path:
        """The facts about money, SQLite."""
        return self.root / "ledger.sqlite"

    @property
    def known_hosts(self) -> Path:
        """Pinned host keys, by instance id."""
        return (self.shared or self.root) / "known_hosts"

    @property
    def key(self) -> Path:
        """The private ssh key; its public half has the suffix `.pub`."""
        return (self.shared or self.root) / "keys" / "id_ed25519"

    def account(self, key: str) -> Folder:
        """
        Return (and make) the folder of another account that is reached through this profile.

        Raises:
            WrongUsage: The key cannot be a folder's name.
        """
        if not _PROFILE_NAME.fullmatch(key):
            raise WrongUsage(f"`{key}` cannot name an account")
        return Folder(private_folder(self.root / "accounts" / key), self.shared or self.root)

    @property
    def cache(self) -> Path:
        """What can be read again from AWS."""
        return private_folder(self.root / "cache")

    @property
    def notes(self) -> Path:
        """What guards the kept work, SQLite; it lies beside that."""
        return (self.shared or self.root) / "notes.sqlite"

    @property
    def tunnels(self) -> Path:
        """State files of detached tunnels."""
        return private_folder(self.root / "tunnels")

    @property
    def work(self) -> Path:
        """Kept work, a folder for each name, where no bucket is used."""
        return private_folder((self.shared or self.root) / "work")


@dataclass(frozen=True)
class Home:
    """
    The user's folder.

    Attributes:
        root: `GPULAB_HOME`, by default `~/.gpulab`.
    """

    root: Path

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Home:
        """Find the folder from the environment."""
        named = environment.get("GPULAB_HOME")
        return cls(Path(named).expanduser() if named else Path.home() / ".gpulab")

    @property
    def config_file(self) -> Path:
        """The configuration, TOML."""
        return self.root / "config.toml"

    @property
    def errors(self) -> Path:
        """Reports of failures nobody expected."""
        return private_folder(self.root / "errors")

    def config(self) -> Config:
        """
        Read the configuration.

        Raises:
            WrongUsage: It cannot be understood.
        """
        return read_config(self.config_file)

    def folder(self, profile_name: str) -> Folder:
        """
        Return (and make) the folder of one profile.

        Raises:
            WrongUsage: The name cannot be a folder's name.
        """
        if not _PROFILE_NAME.fullmatch(profile_name):
            raise WrongUsage(
                f"`{profile_name}` cannot name a profile",
                hint="Letters, digits, dot, dash and underscore, at most 64",
            )
        return Folder(private_folder(self.root / "profiles" / profile_name))
