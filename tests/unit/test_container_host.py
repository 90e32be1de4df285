"""What a host needs to boot machines, what is said where it lacks it, and what of its settings a machine gets."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from gpulab.sandbox.machines import CannotBoot
from gpulab.sandbox.machines.container import cgroups, image
from gpulab.sandbox.machines.container.bed import Bed, _overlaps
from gpulab.sandbox.machines.container.boot import _numbered
from gpulab.sandbox.machines.container.indexes import read_settings
from gpulab.sandbox.machines.container.requirements import missing
from gpulab.sandbox.machines.container.site import authorities_of, volume_lines

ALL_CAPABILITIES = "Name:\tpython\nCapEff:\t000001ffffffffff\n"


def found(*absent: str):
    return lambda tool: None if tool in absent else f"/usr/sbin/{tool}"


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ({"system": "Darwin"}, "need Linux, and this is Darwin; use `--machines process`"),
        ({"system": "Linux", "uid": 1000}, "need root; use `sudo`, or `--machines process`"),
        ({"status": "CapEff:\t00000000a80425fb\n"}, "may not CAP_NET_ADMIN, CAP_SYS_ADMIN;"),
        (
            {"which": found("nft", "systemd-nspawn")},
            "`apt-get install -y --no-install-recommends nftables systemd-container`",
        ),
        ({"loop_control": Path("/absent")}, "there is no /absent, so machines can have no disks;"),
        ({"which": found("mmdebstrap")}, ""),
    ],
)
def test_what_is_missing_is_said_with_its_remedy(host, words):
    """Somebody tries this on a Mac, without sudo, in a container, on a fresh Debian; each has another next step."""
    seen = (
        {"system": "Linux", "uid": 0, "which": found(), "status": ALL_CAPABILITIES}
        | {"loop_control": Path("/dev/null")}
        | host
    )

    sentence = missing(**seen)

    assert words in sentence
    assert bool(sentence) == bool(words)


def test_building_asks_for_more_than_booting():
    """A host that got its base from a cache needs no mmdebstrap."""
    host = {"system": "Linux", "uid": 0, "which": found("mmdebstrap"), "status": ALL_CAPABILITIES}

    sentence = missing(for_build=True, **host)

    assert sentence == (
        "these packages are missing: mmdebstrap; "
        "install them with `apt-get install -y --no-install-recommends mmdebstrap`"
    )


def a_debian(root: Path, *, sources: dict[str, str], release: str = "ID=debian") -> Path:
    (root / "etc/apt/sources.list.d").mkdir(parents=True)
    (root / "etc/os-release").write_text(f'{release}\nVERSION_CODENAME="bookworm"\n')
    for name, text in sources.items():
        (root / "etc/apt" / name).write_text(text)
    return root


def test_the_base_comes_from_the_hosts_own_sources(tmp_path):
    """A machine room has its mirror in there; third parties' sources have no Debian to build from."""
    root = a_debian(
        tmp_path,
        sources={
            "sources.list": "deb http://mirror.test/debian bookworm main\n",
            "sources.list.d/a.sources": "Types: deb\nURIs: http://mirror.test/s\n"
            "Suites: bookworm-security\nComponents: main\n",
            "sources.list.d/other.list": "deb https://vendor.test/apt cloud-bookworm main\n",
            "sources.list.d/tool.sources": "Types: deb\nURIs: https://vendor.test\n"
            "Suites: nodistro\nComponents: main\n",
            "sources.list.d/old.list": "# deb http://mirror.test/debian bookworm main\n",
        },
    )

    suite, files = image.suite_and_sources(root)

    assert (suite, [file.name for file in files]) == ("bookworm", ["sources.list", "a.sources"])


@pytest.mark.parametrize(
    ("release", "sources", "words"),
    [
        ("ID=fedora", {"sources.list": "deb http://mirror.test bookworm main\n"}, "is not Debian"),
        ("ID=debian", {}, "names bookworm"),
    ],
)
def test_a_host_without_debian_sources_is_told_so(tmp_path, release, sources, words):
    """Better than a failure of mmdebstrap a minute later."""
    root = a_debian(tmp_path, sources=sources, release=release)

    with pytest.raises(CannotBoot, match=words):
        image.suite_and_sources(root)


def test_a_missing_base_names_the_command_that_builds_it(tmp_path):
    """The first thing a new user meets."""
    root = a_debian(
        tmp_path / "root", sources={"sources.list": "deb http://mirror.test bookworm main\n"}
    )

    with pytest.raises(CannotBoot, match="`gpulab sandbox build`"):
        image.built({"GPULAB_SANDBOX_CACHE": str(tmp_path / "cache")}, root=root)


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"GPULAB_SANDBOX_CACHE": "/srv/c", "HOME": "/home/a"}, "/srv/c"),
        ({"XDG_CACHE_HOME": "/home/a/c", "HOME": "/home/a"}, "/home/a/c/gpulab/sandbox"),
        ({"HOME": "/home/a"}, "/home/a/.cache/gpulab/sandbox"),
    ],
)
def test_the_cache_is_where_the_user_keeps_caches(environ, folder):
    """Hundreds of megabytes never lie in the repository."""
    assert image.cache_folder(environ) == Path(folder)


@pytest.mark.parametrize("folder", ["/srv/a:b", "/srv/my cache", "/srv/a,b"])
def test_a_cache_that_mounting_would_misread_is_refused(folder):
    """A colon in a path would make two layers of one, far from where the folder was chosen."""
    with pytest.raises(CannotBoot, match=folder):
        image.cache_folder({"GPULAB_SANDBOX_CACHE": folder})


def test_package_settings_of_the_host_reach_a_machine(tmp_path):
    """Where the index of a machine room or of CI is the only one, a machine without it installs nothing."""
    wheels, index = tmp_path / "wheels", tmp_path / "index" / "simple"
    wheels.mkdir()
    index.mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/pip.conf").write_text(
        f"[global]\nextra-index-url =\n    file://{index}\n    https://mirror.test/simple\n"
        "cache-dir = /nowhere\n[install]\nconstraint = /absent.txt\n"
    )
    environ = {
        "HOME": str(tmp_path),
        "PIP_FIND_LINKS": str(wheels),
        "UV_INDEX_URL": "https://i.test",
    }

    settings = read_settings(environ, root=tmp_path)

    assert settings.pip_conf().splitlines() == [
        "[global]",
        f"extra-index-url = file://{index}",
        "    https://mirror.test/simple",
        "constraint = /absent.txt",
        f"find-links = {wheels}",
        "cert = /etc/ssl/certs/ca-certificates.crt",
        "disable-pip-version-check = true",
    ]
    assert tomllib.loads(settings.uv_toml(cache="/var/cache/uv")) == {
        "cache-dir": "/var/cache/uv",
        "link-mode": "symlink",
        "system-certs": True,
        "index-url": "https://i.test",
    }
    assert settings.folders() == [tmp_path / "index", wheels]


def test_uvs_own_file_and_variables_reach_a_machine(tmp_path):
    """Named indexes are tables in TOML, and a variable wins over the file."""
    (tmp_path / ".config/uv").mkdir(parents=True)
    (tmp_path / ".config/uv/uv.toml").write_text(
        'cache-dir = "/nowhere"\nfind-links = ["/a"]\n'
        '[[index]]\nname = "room"\nurl = "https://room.test/simple"\ndefault = true\n'
    )
    environ = {"HOME": str(tmp_path), "UV_FIND_LINKS": "/b,/c"}

    text = read_settings(environ, root=tmp_path).uv_toml(cache="/var/cache/uv")

    assert tomllib.loads(text) == {
        "cache-dir": "/var/cache/uv",
        "link-mode": "symlink",
        "system-certs": True,
        "find-links": ["/b", "/c"],
        "index": [{"name": "room", "url": "https://room.test/simple", "default": True}],
    }


def test_the_authorities_a_user_names_win(tmp_path):
    """Behind a proxy that signs with its own authority, nothing else lets a machine reach anything."""
    own = tmp_path / "own.pem"
    own.write_text("---")

    chosen = authorities_of({"SSL_CERT_FILE": "/absent.pem", "REQUESTS_CA_BUNDLE": str(own)})

    assert chosen == own


def test_two_sandboxes_share_no_address():
    """They run side by side on one host."""
    one, other = Bed(0, Path("/a")), Bed(1, Path("/b"))

    assert (str(one.network), one.host_side, one.name) == ("10.77.0.0/17", "10.77.128.1", "gpulab0")
    assert not one.block.overlaps(other.block)
    assert set(one.addresses).isdisjoint({one.router, one.host_side, one.vpc_side})
    assert one.addresses[0] == "10.77.1.1"


@pytest.mark.parametrize(
    ("routes", "is_taken"),
    [
        ("default via 192.0.2.1 dev eth0\n192.0.2.0/24 dev eth0", False),
        ("10.0.0.0/8 via 192.0.2.9 dev vpn", True),
        ("10.77.3.0/24 dev docker0", True),
        ("local 10.77.3.4 dev eth0 table local", True),
        ("0.0.0.0/0 via 192.0.2.1 dev eth0", False),
    ],
)
def test_addresses_that_the_host_uses_are_left_alone(routes, is_taken):
    """A route over a student's VPN or docker network would cut them off from it."""
    assert _overlaps(Bed(0, Path("/a")), routes) == is_taken


def test_a_process_starts_inside_its_groups(tmp_path):
    """If it joined later, what it had started before would never be found again."""
    for name in ("memory", "pids", "unified"):
        (tmp_path / name).mkdir()

    words = cgroups.enter("gpulab0", "i-1", ["systemd-nspawn", "--boot"], root=tmp_path)

    groups = [
        f"{tmp_path}/{name}/gpulab0/i-1/cgroup.procs" for name in ("unified", "memory", "pids")
    ]
    assert words[:2] == ["sh", "-c"]
    assert words[4:] == [*groups, "--", "systemd-nspawn", "--boot"]
    assert (tmp_path / "pids/gpulab0/i-1").is_dir()


def test_the_processes_of_a_bed_are_those_of_all_its_groups(tmp_path):
    """The reaper ends exactly these; one of another sandbox must not be among them."""
    for name, text in (
        ("gpulab0/i-1", "11\n12\n"),
        ("gpulab0/i-1/inner", "13\n"),
        ("gpulab1", "99\n"),
    ):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "cgroup.procs").write_text(text)
    (tmp_path / "cgroup.controllers").write_text("memory pids\n")

    assert cgroups.members("gpulab0", root=tmp_path) == {11, 12, 13}
    assert cgroups.members("gpulab0", "i-2", root=tmp_path) == set()


def test_a_volume_keeps_its_name_while_others_come_and_go():
    """A file system mounted from `/dev/nvme2n1` must not become another one."""
    before = _numbered(["vol-a", "vol-b"], {})

    after = _numbered(["vol-b", "vol-c"], before)

    assert (before, after) == ({"vol-a": 1, "vol-b": 2}, {"vol-b": 2, "vol-c": 1})


def test_volumes_are_listed_by_the_names_ec2_gives():
    """On EC2's Nitro system the id without its dash is the serial number of the device."""
    text = volume_lines({"nvme1n1": (7, "vol-0abc")})

    assert text == "nvme1n1 7 vol0abc\n"
