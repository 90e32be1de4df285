"""What a class is handed: one page a student to print, and a table for a mail merge. No private key stands in either."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

from gpulab.fleet.ticket import Ticket
from gpulab.fleets.members import Member
from gpulab.view.console import csv_cell
from gpulab.view.words import clean

COLUMNS = ("email", "name", "id", "group", "lab", "ticket", "address", "ends_at")
_CSS = """\
@page{margin:2cm}
body{font:12pt/1.5 sans-serif;margin:0 auto;max-width:40em;color:#111}
section{break-after:page;padding:2em 1em}
.who{font-size:16pt}
code{background:#eee;padding:.1em .3em;overflow-wrap:anywhere}
th{text-align:left;padding-right:1em;vertical-align:top;font-weight:normal;color:#555}
td{overflow-wrap:anywhere}
@media print{body{max-width:none}section{padding:0}section:last-child{break-after:auto}code{background:none;border:1px solid #999}}
"""


@dataclass(frozen=True)
class Handed:
    """One student's ticket; `file` is its name in the handout's folder."""

    member: Member
    ticket: Ticket
    file: str


def handout_html(handed: Sequence[Handed], *, title: str) -> str:
    """Write one page for each student, by the roster's names; everything from outside is escaped."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("gpulab", "view"), autoescape=True)
    digest = base64.b64encode(hashlib.sha256(_CSS.encode()).digest()).decode()
    pages = [
        {
            "who": clean(_who(one.member)),
            "ends": f"{one.ticket.ends_at.astimezone():%A %d %B at %H:%M %Z}",
            "file": one.file,
            "instance": one.ticket.instance_id,
            "address": one.ticket.address,
            "fingerprint": _fingerprint(one.ticket),
        }
        for one in handed
    ]
    return environment.get_template("handout.html.jinja").render(
        title=clean(title), css=_CSS, style_hash=f"sha256-{digest}", pages=pages
    )


def merge_csv(handed: Sequence[Handed], *, lab: str) -> str:
    """Write one row for each student, a group's every member, with cells no spreadsheet takes for formulas."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in handed:
        for student in one.member.seat.students if one.member.seat else ():
            row = (
                student.email,
                student.name,
                student.id,
                student.group,
                lab,
                one.file,
                one.ticket.address,
                one.ticket.ends_at,
            )
            writer.writerow([csv_cell(cell) for cell in row])
    return out.getvalue()


def _who(member: Member) -> str:
    seat = member.seat
    return ", ".join(f"{s.name} ({s.id})" for s in seat.students) if seat else member.name


def _fingerprint(ticket: Ticket) -> str:
    digest = hashlib.sha256(base64.b64decode(ticket.host_key)).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")
