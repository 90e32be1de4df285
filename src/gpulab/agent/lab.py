"""
A lab's notebooks and data sets on an instance. Hides git and the cache; never overwrites what the student has written.

One file, standard library only, Python 3.10 or newer. `lab.py WORD [JSON]`, or given to `python3 -` over ssh: `lab` brings the
notebooks into the work folder, `data` the data sets. JSON, or `notebooks` of the specification, is
`{"repository", "commit", "folder", "data": [[URL, SHA256], ...]}`. A repository may bring its own list, `gpulab-data.json`:
`[{"url", "sha256"}, ...]` in the lab's folder. Files come as they are in the commit, with those lying beside the folder on the way up,
because notebooks import from there. Begun as root, it makes the cache, then goes on as the login user.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

NOTE = "NEW-VERSIONS.md"
# Which folder of the work is the lab's; `gpulab push --lab` and `gpulab pull --lab` read it.
LAB_FILE = ".gpulab/lab.json"
DATA_LIST = "gpulab-data.json"
GIT_WITHIN_S = 300
_SPARE_BYTES = 2 * 2**30
_TRIES = 3


class Problem(Exception):
    """Something failed; the text says what."""


class Place(NamedTuple):
    """
    Where everything is.

    Attributes:
        work: The work folder.
        cache: For this user only; on the fast local disk where there is one.
    """

    work: Path
    cache: Path


class Outcome(NamedTuple):
    """
    What came of delivering a commit.

    Attributes:
        new: Files that were not there.
        renewed: Files that the student had not changed, now of this commit.
        beside: Paths of files that the student had changed, each with the name its new version got.
        merged: The same for clean merges of both.
        skipped: Links, submodules, and paths that something else of the student's blocks.
    """

    new: list[str]
    renewed: list[str]
    beside: dict[str, str]
    merged: dict[str, str]
    skipped: list[str]


def main(argv: list[str]) -> int:
    """Do one word; returns the exit code."""
    root = os.environ.get("GPULAB_ROOT", "")
    if argv[:1] == ["--root"] and len(argv) > 1:
        root, argv = argv[1], argv[2:]
    word, given = (*argv, "", "")[:2]
    try:
        spec = json.loads(Path(f"{root}/etc/gpulab/spec.json").read_bytes())
        lab = json.loads(given) if given else spec["notebooks"]
        place = prepared(root, str(spec["user"]))
        say: Callable[[Place, dict[str, Any]], str] = {"lab": bring, "data": fetch_all}[word]
        print(say(place, lab))
    except (Problem, OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
        print(
            f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else error,
            file=sys.stderr,
        )
        return 1
    if word == "lab" and given:
        in_background(place, lab)
    return 0


def prepared(root: str, user: str) -> Place:
    """Make the cache, install git where it is missing, and become the login user."""
    disk = Path(f"{root}/opt/dlami/nvme")
    cache = (disk if disk.is_mount() else Path(f"{root}/var/cache")) / "gpulab/lab"
    cache.mkdir(parents=True, exist_ok=True)
    work = Path(f"{root}/home/{user}/work")
    if shutil.which("git") is None:
        install_git()
    if not root and os.geteuid() == 0:
        known = pwd.getpwnam(user)
        os.chown(cache, known.pw_uid, known.pw_gid)
        os.initgroups(user, known.pw_gid)
        os.setgid(known.pw_gid)
        os.setuid(known.pw_uid)
        os.environ["HOME"] = known.pw_dir
    os.umask(0o022)
    return Place(work, cache)


def install_git() -> None:
    """
    Install git with apt.

    Raises:
        Problem: It cannot be installed.
    """
    for words in (["update"], ["install", "-y", "--no-install-recommends", "git"]):
        done = subprocess.run(
            ["apt-get", "-q", *words], capture_output=True, text=True, timeout=600, check=False
        )
        if done.returncode:
            raise Problem(f"git is not there and cannot be installed: {last_line(done.stderr)}")


# --- notebooks ----------------------------------------------------------------------------------------------------


def bring(place: Place, lab: dict[str, Any]) -> str:
    """
    Bring a commit's notebooks into the work folder.

    Returns:
        What was done, a sentence.

    Raises:
        Problem: The repository, commit or folder cannot be had; nothing was changed then.
    """
    repository = Repository(place.cache, str(lab["repository"]))
    commit = repository.fetch(str(lab.get("commit") or ""))
    folder = str(lab.get("folder") or "").strip("/")
    paths = repository.paths(commit, folder)
    shelf = Shelf(place.work, repository)
    done = shelf.put_all(commit, paths)
    where = repository.name + (f"/{folder}" if folder else "")
    about = {"folder": where, "repository": repository.url, "commit": commit}
    write(place.work / LAB_FILE, json.dumps(about).encode())
    return sentence(f"~/work/{where}", commit, done)


def sentence(where: str, commit: str, done: Outcome) -> str:
    """Say what was done with a commit."""
    said = [f"{where} is at {commit[:7]}: {len(done.new)} new"]
    if done.renewed:
        said.append(f"{len(done.renewed)} renewed")
    if done.beside:
        said.append(
            f"{len(done.beside)} you changed stay yours, the new ones lie beside, see {NOTE}"
        )
    if done.skipped:
        said.append(f"{len(done.skipped)} links, submodules or blocked paths left out")
    return ", ".join(said)


class Repository:
    """A repository in the cache, with only the commits that were asked for."""

    def __init__(self, cache: Path, url: str) -> None:
        scheme = url.partition("://")[0]
        last = urllib.parse.urlsplit(url).path.rstrip("/").rpartition("/")[2].removesuffix(".git")
        self.url = url
        self.name = re.sub(r"[^A-Za-z0-9._-]", "-", last).lstrip(".-") or "notebooks"
        self.folder = cache / "git" / hashlib.sha256(url.encode()).hexdigest()[:16]
        self._env = {
            **os.environ,
            "GIT_TERMINAL_PROMPT": "0",  # a repository that asks for a password is an error, not a question
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_ALLOW_PROTOCOL": scheme,  # no redirect to a local file or a command
            "LC_ALL": "C",
        }

    def fetch(self, commit: str) -> str:
        """
        Fetch one commit, or the head of the default branch.

        Returns:
            The full commit id.

        Raises:
            Problem: It cannot be had.
        """
        is_full = bool(re.fullmatch(r"[0-9a-f]{40}", commit))
        if commit.startswith("-"):
            raise Problem(f"{commit!r} is no commit")
        if not (self.folder / "HEAD").exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._git("init", "-q", "--bare", ".")
        if is_full and self._has(commit):
            return commit
        try:
            self._patiently("fetch", "-q", "--depth=1", "--no-tags", self.url, commit or "HEAD")
        except Problem:
            if not is_full:
                raise
            # A server may give no commit by its id; then all branches, and it is among them.
            self._patiently("fetch", "-q", "--no-tags", self.url, "+refs/heads/*:refs/remotes/o/*")
        found = (
            commit if is_full else self._git("rev-parse", "FETCH_HEAD^{commit}").decode().strip()
        )
        if not self._has(found):
            raise Problem(f"{self.url} has no commit {commit}")
        return found

    def paths(self, commit: str, folder: str) -> list[str]:
        """
        List what belongs to a folder: everything below it, and the files beside it on the way up.

        Raises:
            Problem: The commit has no such folder.
        """
        if not folder:
            return ["."]
        if self._git("ls-tree", "-d", "--name-only", "-z", commit, folder) == b"":
            raise Problem(f"{self.url} has no folder {folder} at {commit[:7]}")
        found = [folder]
        for parent in PurePosixPath(folder).parents:
            listed = self._git(
                "ls-tree", "-z", commit, *([f"{parent}/"] if str(parent) != "." else [])
            )
            for row in listed.decode("utf-8", "surrogateescape").split("\0"):
                about, _, path = row.partition("\t")
                if about.startswith("100"):
                    found.append(path)
        return found

    def files(self, commit: str, paths: list[str]) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
        """Give the files of a commit, one after the other; what is no file has no content."""
        specs = [f":(literal){path}" for path in paths]
        with subprocess.Popen(
            ["git", "-C", str(self.folder), "archive", "--format=tar", commit, "--", *specs],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._env,
        ) as git:
            assert git.stdout is not None
            with tarfile.open(fileobj=git.stdout, mode="r|") as archive:
                for member in archive:
                    content = archive.extractfile(member) if member.isreg() else None
                    yield member, content.read() if content else b""

    def content(self, commit: str, path: str) -> bytes | None:
        """Read one file of a commit, fetching the commit if need be; `None` when it cannot be had."""
        try:
            return self._git("cat-file", "blob", f"{self.fetch(commit)}:{path}")
        except Problem:
            return None

    def merged(self, mine: Path, base: bytes, new: bytes) -> bytes | None:
        """Merge two versions of a file; `None` where they contradict each other or the result is no notebook."""
        scratch = self.folder / "merge"
        scratch.mkdir(exist_ok=True)
        (scratch / "base").write_bytes(base)
        (scratch / "new").write_bytes(new)
        try:
            said = self._git(
                "merge-file", "-p", str(mine), str(scratch / "base"), str(scratch / "new")
            )
            if mine.suffix == ".ipynb":
                json.loads(said)
        except (Problem, ValueError, RecursionError):
            return None
        return said

    def _has(self, commit: str) -> bool:
        with contextlib.suppress(Problem):
            self._git("cat-file", "-e", f"{commit}^{{tree}}")
            return True
        return False

    def _patiently(self, *words: str) -> None:
        for left in reversed(range(_TRIES)):
            try:
                self._git(*words)
                return
            except Problem:
                if not left:
                    raise
                time.sleep(2)

    def _git(self, *words: str) -> bytes:
        try:
            done = subprocess.run(
                ["git", "-C", str(self.folder), *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=GIT_WITHIN_S,
                env=self._env,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Problem(f"{self.url} did not answer within {GIT_WITHIN_S} s") from None
        if done.returncode:
            raise Problem(f"{self.url}: {last_line(done.stderr.decode('utf-8', 'replace'))}")
        return done.stdout


class Shelf:
    """The work folder, and what was put there by whom: the only place that decides what may be replaced."""

    def __init__(self, work: Path, repository: Repository) -> None:
        self.folder = work / repository.name
        self.repository = repository
        self.book = work / ".gpulab" / "notebooks.json"
        known = self._read().get(repository.url)
        self.known: dict[str, dict[str, str]] = {
            path: about
            for path, about in (known.items() if isinstance(known, dict) else ())
            if isinstance(about, dict) and all(isinstance(word, str) for word in about.values())
        }

    def put_all(self, commit: str, paths: list[str]) -> Outcome:
        """Put every file of a commit, write down what was put, and leave a note on what the student has to decide."""
        done = Outcome([], [], {}, {}, [])
        try:
            for member, content in self.repository.files(commit, paths):
                if member.isdir():
                    continue
                if not member.isreg() or not is_safe(member.name):
                    done.skipped.append(member.name)
                    continue
                try:
                    self._put(done, commit, member, content)
                except (
                    OSError
                ):  # a file of the student's where a folder should be, or the other way round
                    done.skipped.append(member.name)
        finally:
            self._write()
        if done.beside:
            write(self.folder / NOTE, note(commit, done).encode())
        return done

    def _put(self, done: Outcome, commit: str, member: tarfile.TarInfo, content: bytes) -> None:
        path, target = member.name, self.folder / member.name
        sha256 = hashlib.sha256(content).hexdigest()
        known = self.known.get(path, {})
        ours = {"sha256": sha256, "commit": commit}
        if not os.path.lexists(target):
            write(target, content, mode=0o755 if member.mode & 0o100 else 0o644)
            done.new.append(path)
            self.known[path] = ours
            return
        mine = digest(target)
        if mine == sha256:
            self.known[path] = ours
        elif mine == known.get("sha256"):
            write(target, content, mode=0o755 if member.mode & 0o100 else 0o644)
            done.renewed.append(path)
            self.known[path] = ours
        elif sha256 not in (known.get("sha256"), known.get("offered")):
            self._offer(done, commit, path, content)
            self.known[path] = {**known, "offered": sha256}

    def _offer(self, done: Outcome, commit: str, path: str, content: bytes) -> None:
        """Put a new version beside a file that the student has changed, and where it can be done a merge of both."""
        target = self.folder / path
        beside = target.with_name(f"{target.stem}.new-{commit[:7]}{target.suffix}")
        if not os.path.lexists(beside):
            write(beside, content)
        done.beside[path] = beside.name
        since = self.known.get(path, {}).get("commit", "")
        base = self.repository.content(since, path) if since else None
        if base is None or target.is_symlink() or not target.is_file():
            return
        both = self.repository.merged(target, base, content)
        offered = target.with_name(f"{target.stem}.merged-{commit[:7]}{target.suffix}")
        if both is not None and not os.path.lexists(offered):
            write(offered, both)
            done.merged[path] = offered.name

    def _read(self) -> dict[str, Any]:
        try:
            book = json.loads(self.book.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return book if isinstance(book, dict) else {}

    def _write(self) -> None:
        write(self.book, json.dumps({**self._read(), self.repository.url: self.known}).encode())


def note(commit: str, done: Outcome) -> str:
    """Write what the student has to decide."""
    lines = [
        f"# New versions of notebooks you have changed ({commit[:7]})",
        "",
        "Yours were not touched. For each of them:",
        "",
        "- take the new one: rename it to the name of yours;",
        "- keep yours: delete the new one;",
        "- take both: where a merge is named, it holds your changes and the new ones; open it, run it, then give it your name.",
        "",
        "| yours | new version | merge of both |",
        "|---|---|---|",
        *(
            f"| {path} | {name} | {done.merged.get(path, 'they contradict each other')} |"
            for path, name in sorted(done.beside.items())
        ),
    ]
    return "\n".join(lines) + "\n"


# --- data sets ----------------------------------------------------------------------------------------------------


def fetch_all(place: Place, lab: dict[str, Any]) -> str:
    """
    Fetch every data set into the cache and link it into `work/data`.

    Returns:
        What was done, a sentence.

    Raises:
        Problem: One could not be had; the others are there all the same.
    """
    wrong: list[str] = []
    wanted = data_sets(place, lab, wrong)
    for url, sha256 in wanted:
        try:
            link(place, fetch_one(place, url, sha256))
        except (Problem, OSError, ValueError, http.client.HTTPException) as error:
            wrong.append(f"{url.rpartition('/')[2]}: {error}")
    if wrong:
        raise Problem(
            f"{len(wanted) - len(wrong)} of {len(wanted)} data sets are here; {'; '.join(wrong)}"
        )
    return f"{len(wanted)} data sets in ~/work/data" if wanted else "no data sets"


def data_sets(place: Place, lab: dict[str, Any], wrong: list[str]) -> list[tuple[str, str]]:
    """List what the lab names and what its repository names; an unreadable list is `wrong`."""
    found = [(str(url), str(sha256)) for url, sha256 in lab.get("data") or []]
    repository = Repository(place.cache, str(lab["repository"]))
    folder = str(lab.get("folder") or "").strip("/")
    path = f"{folder}/{DATA_LIST}".lstrip("/")
    said = None
    with contextlib.suppress(Problem):
        said = repository.content(repository.fetch(str(lab.get("commit") or "")), path)
    if said is not None:
        try:
            found += [(str(row["url"]), str(row["sha256"])) for row in json.loads(said)]
        except (ValueError, KeyError, TypeError, RecursionError):
            wrong.append(f"{path} is not a list of url and sha256")
    return list(dict.fromkeys(found))


def fetch_one(place: Place, url: str, sha256: str) -> Path:
    """
    Fetch one data set, once; what was begun is continued.

    Raises:
        Problem: It cannot be had, is not what was named, or the disk is too small.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", sha256) or not url.startswith(
        ("https://", "http://127.0.0.1")
    ):
        raise Problem("it needs an https address and a sha256")
    folder = place.cache / "data" / sha256
    target = folder / name_of(url)
    if target.exists():
        return target  # it was compared before it got its name
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / ".part"
    for left in reversed(range(_TRIES)):
        try:
            download(url, part)
            break
        except OSError as error:
            if not left:
                raise Problem(f"{url} cannot be had: {error}") from error
            time.sleep(2)
    if digest(part) != sha256:
        part.unlink()
        raise Problem("the file at its address is not the one that was named (another sha256)")
    part.chmod(0o444)
    part.rename(target)
    return target


def download(url: str, part: Path) -> None:
    """
    Add to a file what is missing of it.

    Raises:
        OSError: No answer, or the disk is full.
        Problem: The disk is too small.
    """
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            return  # all of it is here
        raise
    with answer, part.open("ab" if answer.status == 206 else "wb") as out:
        size = int(answer.headers.get("Content-Length") or 0)
        free = shutil.disk_usage(part.parent).free
        if size > free - _SPARE_BYTES:
            raise Problem(f"it has {size >> 20} MiB and {free >> 20} MiB are free")
        shutil.copyfileobj(answer, out, 2**20)
        if size and answer.length:
            raise OSError("the connection broke")


def link(place: Place, target: Path) -> None:
    """Show a data set in the work folder; what the student has there under that name stays."""
    shown = place.work / "data" / target.name
    shown.parent.mkdir(parents=True, exist_ok=True)
    if shown.is_symlink() and not shown.exists():
        shown.unlink()  # of an earlier instance
    if not os.path.lexists(shown):
        shown.symlink_to(target)


def in_background(place: Place, lab: dict[str, Any]) -> None:
    """Fetch the data sets in a process that outlives the ssh connection; what went wrong is a file in the work folder."""
    if os.fork():
        return
    os.setsid()
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)
    failed = place.work / "data" / "NOT-FETCHED.txt"
    try:
        fetch_all(place, lab)
        failed.unlink(missing_ok=True)
    except (
        Exception
    ) as error:  # nobody listens any more: the student finds it where the data should be
        write(failed, f"{error}\n".encode())
    os._exit(0)


def name_of(url: str) -> str:
    """
    The file's name in an address.

    Raises:
        Problem: It is none.
    """
    try:
        last = urllib.parse.unquote(urllib.parse.urlsplit(url).path).rpartition("/")[2]
    except ValueError as error:
        raise Problem(f"{url!a} is no address: {error}") from None
    return re.sub(r"[^A-Za-z0-9._-]", "-", last).lstrip(".-") or "data"


# --- files --------------------------------------------------------------------------------------------------------


def is_safe(path: str) -> bool:
    """Whether a path of a repository stays inside its folder and is not git's or ours."""
    parts = PurePosixPath(path).parts
    inside = bool(parts) and not path.startswith("/") and ".." not in parts
    return inside and not any(part == ".git" or part.startswith(".gpulab") for part in parts)


def digest(path: Path) -> str:
    """The sha256 of a file; empty for what is no file."""
    if path.is_symlink() or not path.is_file():
        return ""
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest()
            if sys.version_info >= (3, 11)
            else _sha256(file)
        )


def _sha256(file: Any) -> str:
    found = hashlib.sha256()
    while part := file.read(2**20):
        found.update(part)
    return found.hexdigest()


def write(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Replace a file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".gpulab-{path.name}.{os.getpid()}")
    fresh.write_bytes(content)
    fresh.chmod(mode)
    fresh.replace(path)


def last_line(text: str) -> str:
    """The line that says what failed: git's first `fatal:`, else the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    fatal = [line.removeprefix("fatal: ") for line in lines if line.startswith("fatal: ")]
    return (fatal[:1] or lines[-1:] or ["no reason given"])[0][:300]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
