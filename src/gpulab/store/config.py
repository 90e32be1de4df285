"""
The configuration file `config.toml`: reading it with every problem named, and changing one profile in it.

Hides TOML and the defaults; refuses unknown keys and wrong types, naming the file and the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from gpulab.errors import WrongUsage
from gpulab.model.nearest import did_you_mean
from gpulab.model.toml import read_toml
from gpulab.store.files import write_atomically

DEFAULT_REGIONS = ("us-east-1", "us-east-2", "us-west-2")


@dataclass(frozen=True)
class Profile:
    """
    One way to reach one AWS account, with the user's wishes for it.

    Attributes:
        aws_profile: Profile of the AWS configuration; `""` for AWS's own default.
        aws_config_file: Instead of `~/.aws/config`; `None` for that.
        aws_credentials_file: Instead of `~/.aws/credentials`; `None` for that.
        regions: In order of preference; never empty.
        ssh_proxy_command: Argument list with `%h` and `%p`; empty for a direct connection.
        owner: Opaque id that marks this user's resources; `""` before `gpulab init`.
        gpu: Wish when `up` names none.
        hours: Life of an instance when `up` names none.
        hours_limit: `up` and `extend` refuse a life beyond this.
        idle_minutes: An instance ends itself after so long without activity.
        max_usd_per_hour: Cap on the instance price; `None` for AWS's default.
        budget_usd: What the user allows for the term; `None` for no limit of our own.
        credit_usd: What the user says the credit was; `None` if never typed.
        keep_bucket: S3 bucket of the kept work; `""` to keep it in a folder on this computer.
        keep_region: Where that bucket is; `""` when its name ends in the region, as the one that `gpulab init` makes.
        instance_role: Instance profile that may write to the bucket; `""` for none.
        scheduler_role: ARN of the role that ends instances on schedule; `""` for none.
        login_user: User of the images.
        cidr: From where port 22 is open; `""` to ask Amazon for this computer's address at each launch.
        disk_gib: Root volume.
        image_rate_mib_s: At which rate the disk of an instance is filled that boots from an image of ours, 100 to 300, billed by the GiB; 0 for
            EBS's own way, which is slow and free.
        environment_folders: Folders of lab environments of one's own, looked at before the shipped ones.
        option: What `--profile` must say for a command to mean this one; `""` for the default one. Not of the file.
    """

    name: str
    aws_profile: str = ""
    aws_config_file: Path | None = None
    aws_credentials_file: Path | None = None
    regions: tuple[str, ...] = DEFAULT_REGIONS
    ssh_proxy_command: tuple[str, ...] = ()
    owner: str = ""
    course: str = ""
    environment: str = "tf2"
    gpu: str = "T4"
    hours: Decimal = Decimal(4)
    hours_limit: Decimal = Decimal(12)
    idle_minutes: int = 60
    max_usd_per_hour: Decimal | None = None
    budget_usd: Decimal | None = None
    credit_usd: Decimal | None = None
    keep_bucket: str = ""
    keep_region: str = ""
    instance_role: str = ""
    scheduler_role: str = ""
    login_user: str = "ubuntu"
    disk_gib: int = 60
    cidr: str = ""
    environment_folders: tuple[Path, ...] = ()
    image_rate_mib_s: int = 0
    option: str = ""

    @property
    def lifetime(self) -> timedelta:
        """`hours`, in whole seconds."""
        return timedelta(seconds=int(self.hours * 3600))

    @property
    def lifetime_limit(self) -> timedelta:
        """`hours_limit`, in whole seconds."""
        return timedelta(seconds=int(self.hours_limit * 3600))


@dataclass(frozen=True)
class Config:
    """
    The whole file.

    Attributes:
        default_profile: Used when neither `--profile` nor `GPULAB_PROFILE` names one.
        profiles: By name; may be empty before `gpulab init`.
    """

    default_profile: str
    profiles: Mapping[str, Profile]

    def profile(self, name: str | None) -> Profile:
        """
        Return the named profile, or the default one.

        Raises:
            WrongUsage: No profile has that name; `default` always exists.
        """
        wanted = name or self.default_profile
        found = self.profiles.get(wanted) or (Profile("default") if wanted == "default" else None)
        if found is not None:
            return replace(found, option=self.option(wanted))
        raise WrongUsage(
            f"there is no profile `{wanted}`", hint=_nearest(wanted, [*self.profiles, "default"])
        )

    def option(self, name: str) -> str:
        """Return what `--profile` must say to mean a profile, which need not be there yet; `""` for the default one."""
        return "" if name == self.default_profile else name


def read_config(path: Path) -> Config:
    """
    Read the configuration; a missing file is an empty one.

    Raises:
        WrongUsage: The file is not TOML, has an unknown key or a value of the wrong kind; file and key are named.
    """
    try:
        raw = read_toml(path.read_bytes())
    except FileNotFoundError:
        raw = {}
    except ValueError as error:
        raise WrongUsage(f"{path}: not readable as TOML: {error}", hint=_REPAIR) from error
    except OSError as error:
        raise WrongUsage(f"{path}: {error.strerror}", hint=_REPAIR) from error
    return _config(path, raw)


def change_profile(path: Path, name: str, changes: Mapping[str, Any]) -> None:
    """
    Write some keys of one profile, leaving everything else in the file as it is, comments too.

    Args:
        changes: Values in TOML's types; `None` removes a key.

    Raises:
        WrongUsage: What is there already, or would be then, is not right; nothing was changed.
        StoreError: It cannot be written.
    """
    import tomlkit

    read_config(path)
    try:
        text = path.read_text(encoding="utf-8-sig") if path.exists() else ""
        document = tomlkit.parse(text)
    except (OSError, ValueError) as error:  # tomlkit's own errors are ValueErrors
        raise WrongUsage(f"{path}: not readable as TOML: {error}", hint=_REPAIR) from error
    profiles = document.setdefault("profiles", tomlkit.table(is_super_table=True))
    table = profiles.setdefault(name, tomlkit.table())
    for key, value in changes.items():
        if value is None:
            table.pop(key, None)
        else:
            table[key] = value
    changed = tomlkit.dumps(document).encode()
    _config(path, read_toml(changed))
    write_atomically(path, changed)


_REPAIR = "Correct the file, or move it away and run `gpulab init`"
# Hours of a hundred years, or a million dollars; what is more is a slip of the keyboard.
_MOST = 1_000_000
_LEAST = Decimal("1e-10")
_DECIMALS = {"hours", "hours_limit", "max_usd_per_hour", "budget_usd", "credit_usd"}
_PATHS = {"aws_config_file", "aws_credentials_file"}
_LISTS = {"regions", "ssh_proxy_command", "environment_folders"}
_INTEGERS = {"idle_minutes", "disk_gib", "image_rate_mib_s"}
_KEYS = [f.name for f in fields(Profile) if f.name not in ("name", "option")]


def _config(path: Path, raw: Mapping[str, Any]) -> Config:
    _refuse_unknown(path, "", raw, ["default_profile", "profiles"])
    profiles = raw.get("profiles", {})
    if not isinstance(profiles, dict) or not all(isinstance(v, dict) for v in profiles.values()):
        raise WrongUsage(f"{path}: `profiles` must hold tables such as [profiles.default]")
    default = raw.get("default_profile", "default")
    if not isinstance(default, str):
        raise WrongUsage(f"{path}: `default_profile` must be text")
    return Config(default, {name: _profile(path, name, table) for name, table in profiles.items()})


def _profile(path: Path, name: str, table: Mapping[str, Any]) -> Profile:
    where = f"profiles.{name}"
    _refuse_unknown(path, where, table, _KEYS)
    values = {key: _value(path, f"{where}.{key}", key, value) for key, value in table.items()}
    profile = replace(Profile(name=name), **values)
    if not profile.regions:
        raise WrongUsage(f"{path}: `{where}.regions` must name at least one region")
    return profile


def _value(path: Path, where: str, key: str, value: Any) -> Any:
    if key in _DECIMALS:
        return _decimal(path, where, value)
    if key in _INTEGERS:
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise WrongUsage(f"{path}: `{where}` must be a whole number above 0")
        if value > _MOST:
            raise WrongUsage(f"{path}: `{where}` must be at most {_MOST:,}")
        return value
    if key in _LISTS:
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise WrongUsage(f"{path}: `{where}` must be a list of texts")
        texts = (_text(path, where, v) for v in value)
        is_path = key == "environment_folders"
        return tuple(_path(path, where, t) if is_path else t for t in texts)
    text = _text(path, where, value)
    return _path(path, where, text) if key in _PATHS else text


def _text(path: Path, where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise WrongUsage(f"{path}: `{where}` must be text")
    if not value.isprintable():
        raise WrongUsage(f"{path}: `{where}` holds characters that cannot be seen")
    return value


def _path(path: Path, where: str, text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise WrongUsage(f"{path}: `{where}`: there is no such user: {text}") from error


def _decimal(path: Path, where: str, value: Any) -> Decimal:
    try:
        amount = Decimal(str(value)) if not isinstance(value, bool) else Decimal("NaN")
    except (InvalidOperation, ValueError):
        amount = Decimal("NaN")
    # The least is for exponents: 1e-999999 is written out with a million digits.
    if not amount.is_finite() or not (amount == 0 or _LEAST <= amount <= _MOST):
        raise WrongUsage(f"{path}: `{where}` must be a number from 0 to {_MOST:,}")
    return amount


def _refuse_unknown(path: Path, where: str, table: Mapping[str, Any], known: list[str]) -> None:
    for key in table:
        if key not in known:
            place = f"{where}.{key}" if where else key
            raise WrongUsage(f"{path}: unknown key `{place}`", hint=_nearest(key, known))


def _nearest(word: str, known: list[str]) -> str:
    return did_you_mean(word, known, otherwise="Known: " + ", ".join(sorted(set(known))))
