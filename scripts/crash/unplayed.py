"""The commands that are no plays, and why; a test compares them with all there are."""

from __future__ import annotations

_WORLD = "turns a simulated world, in which nothing is anybody's"
_TYPED = "runs what is typed behind it on the instance, and changes nothing by itself"

#: They change something.
UNPLAYED = {
    "open": "opens a tunnel and a page on this computer; what breaks a tunnel is in `tests/aws/remote`",
    "ssh": _TYPED,
    "fleet exec": _TYPED,
    "dashboard": "has a private file while it runs, and ends with its terminal",
    "env lock": "chooses from a package index, which is not simulated, and writes one file atomically",
    "sandbox apply": _WORLD,
    "sandbox build": "builds a container image, which can be built again",
    "sandbox capacity": _WORLD,
    "sandbox connect": "is typed by ssh, not by people",
    "sandbox fail": _WORLD,
    "sandbox interrupt": _WORLD,
    "sandbox mend": _WORLD,
    "sandbox price": _WORLD,
    "sandbox quota": _WORLD,
    "sandbox throttle": _WORLD,
}
#: They show something; what they learn of ends goes into the ledger, as `gpulab ls` does on one of the ways back.
SHOWING = frozenset(
    {
        *("check", "completion", "cost", "doctor", "logs", "ls", "prices", "show"),
        *("course check", "course schema", "course show"),
        *("env check", "env ls", "env show"),
        *("fleet ls", "fleet plan", "fleet watch"),
        *("guard show", "image ls", "image packer", "ledger show"),
        *("sandbox env", "sandbox log", "sandbox status"),
    }
)


def table() -> str:
    """Every command that changes something and is no play, for the page."""
    rows = "\n".join(f"| `{name}` | {why} |" for name, why in UNPLAYED.items())
    return (
        "## Commands that are no plays\n\nEvery other command of [reference.md](reference.md) that changes anything is one.\n\n"
        f"| command | why |\n|---|---|\n{rows}"
    )
