"""Damaged files of the user's own folder: configuration, journal, ledger, pins; and what is pasted or downloaded into it."""

from __future__ import annotations

import gzip
import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.fuzzing.edits import MARK, as_json, as_lines, either
from tests.fuzzing.files import emptied, folder, from_file
from tests.fuzzing.oracle import Target, Wrong

from gpulab.aws.told_costs import by_id
from gpulab.launch.money.told_costs import _sort
from gpulab.launch.money.whose import Served
from gpulab.model import fact
from gpulab.model.fact import Fact, Source
from gpulab.model.market import Market
from gpulab.model.report import Dimension
from gpulab.model.statement import Statement
from gpulab.model.timeline import EndedBy
from gpulab.remote import hostkeys
from gpulab.reporting.report import Question, report_of
from gpulab.spending.charging import cost_of
from gpulab.spending.document import read_document, render
from gpulab.spending.facts import timeline_of
from gpulab.spending.forecast import burn_of
from gpulab.store.config import change_profile, read_config
from gpulab.store.credentials import parse_pasted, write_credentials
from gpulab.store.fact_lines import import_lines
from gpulab.store.journal import Intent, Journal
from gpulab.store.ledger import Ledger
from gpulab.store.statements import read_statement
from gpulab.view.report_cost import cost_lines
from gpulab.view.report_ledger import fact_rows
from gpulab.view.report_table import report_json, report_lines

_NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
_BILLING = Path(__file__).parents[1] / "unit" / "data" / "billing"
_COST = Path(__file__).parents[1] / "unit" / "cases" / "cost"

_CONFIG = b"""\
default_profile = "a"
[profiles.a]
aws_profile = "course"
aws_config_file = "~/.aws/config"
regions = ["eu-north-1", "us-east-1"]
ssh_proxy_command = ["ssh", "-W", "%h:%p", "door"]
hours = "2.5"
hours_limit = 8
idle_minutes = 30
budget_usd = "50.00"
disk_gib = 80
environment_folders = ["~/mine"]
"""


def _config(path: Path) -> None:
    found = read_config(path)
    for profile in (*found.profiles.values(), found.profile("default")):
        # As many hours as the file may say: what a launch may last is its own limit's to refuse.
        if not _NOW <= _NOW + profile.lifetime <= _NOW + timedelta(hours=1_000_000):
            raise Wrong(f"a life of {profile.lifetime}")
        _NOW + profile.lifetime_limit
        if (
            len(
                f"{profile.budget_usd} {profile.credit_usd} {profile.max_usd_per_hour:f}"
                if profile.max_usd_per_hour is not None
                else ""
            )
            > 500
        ):
            raise Wrong("an amount of hundreds of digits")
    change_profile(path, "b", {"gpu": "T4"})
    if read_config(path).profile("b").gpu != "T4":
        raise Wrong("a change that does not read back")


_INTENT = Intent(
    "l1",
    1,
    "l1-1",
    "week4",
    "us-east-1",
    {"InstanceType": "g4dn.xlarge", "Placement": {"AvailabilityZone": "us-east-1a"}},
    b"#cloud-config\n",
    _NOW,
)


def _journal_records() -> list[object]:
    path = emptied("journal-seed") / "journal.jsonl"
    journal = Journal(path)
    journal.intend(_INTENT)
    journal.intend(replace(_INTENT, token="l1-2", attempt=2))
    journal.conclude(_INTENT, "launched", instance_id="i-0123456789abcdef0", at=_NOW)
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def _journal(path: Path) -> None:
    for intent in (story := Journal(path).read()).open_intents:
        texts = (intent.launch_id, intent.token, intent.name, intent.region)
        if not all(isinstance(text, str) and text for text in texts) or not isinstance(
            intent.attempt, int
        ):
            raise Wrong(f"an intent with {texts}")
        if not isinstance(intent.parameters, dict) or not isinstance(intent.user_data, bytes):
            raise Wrong("an intent whose call cannot be made again")
        intent.parameters["Placement"]["AvailabilityZone"] + intent.parameters["InstanceType"]
        if intent.at > _NOW:
            continue
    for made in story.made:
        if made.at > _NOW or not made.instance_id:
            continue


def _some_facts() -> tuple[Fact, ...]:
    begin = _NOW - timedelta(hours=5)
    cents = Decimal("0.16")
    bill = Statement(
        name="cur.csv", format="cur-2.0", digest="d1", lines=2, unreadable=0, path="bills/cur.csv"
    )
    return (
        fact.intent(
            "t1",
            at=begin,
            launch_id="l1",
            zone="us-east-1a",
            instance_type="g4dn.xlarge",
            market=Market.SPOT,
            at_most_usd_per_hour=Decimal("0.526"),
        ),
        fact.address("i-1", at=begin, usd_per_hour=Decimal("0.005")),
        fact.statement_read(bill, at=_NOW),
        fact.launched(
            "i-1",
            at=begin,
            zone="us-east-1a",
            instance_type="g4dn.xlarge",
            market=Market.SPOT,
            usd_per_hour=cents,
            on_demand_usd_per_hour=Decimal("0.526"),
            launch_id="l1",
            token="t1",
            name="week4",
            owner="s1",
            gpus=1,
            expires_at=_NOW,
        ),
        fact.started("i-1", at=begin + timedelta(seconds=30)),
        fact.price("us-east-1a", "g4dn.xlarge", at=begin, usd_per_hour=cents),
        fact.volume(
            "vol-1",
            at=begin,
            type="gp3",
            size_gb=60,
            usd_per_gb_month=Decimal("0.08"),
            instance_id="i-1",
            ends_with_instance=True,
        ),
        fact.extended("i-1", at=begin, until=_NOW),
        fact.usage("i-1", at=begin, seconds=3600, idle_seconds=60),
        fact.ended("i-1", at=_NOW, by=EndedBy.USER, reason="idle", source=Source.AWS),
        fact.volume_deleted("vol-1", at=_NOW),
    )


def _facts_are_reported(facts: Iterable[Fact]) -> None:
    kept = tuple(facts)
    fact_rows(kept)
    reading = timeline_of(kept)
    cost_of(reading.timeline, as_of=_NOW)
    burn_of(reading.timeline, now=_NOW)
    report = report_of(reading, Question(now=_NOW))
    report_json(report)
    for dimension in Dimension:
        report_lines(report, dimension, bar="#", limit=10)


def _import(given: bytes) -> None:
    facts = import_lines(given)
    ledger = Ledger(emptied("import") / "ledger.sqlite")
    ledger.append(facts)
    if {one.digest for one in ledger.facts()} != {one.digest for one in facts}:
        raise Wrong("facts that do not read back as they were written")
    _facts_are_reported(facts)


def _told(given: bytes) -> None:
    """What an instance wrote of its own costs: its user may write there what they like, of itself only."""
    facts: list[Fact] = []
    problems: list[str] = []
    context: Any = SimpleNamespace(now=lambda: _NOW)
    _sort(context, by_id("s1", "i-1"), given, facts, problems)
    of_class, since = list[Fact](), _NOW - timedelta(days=1)
    served = Served("w1-s1", ("s1",), since)
    _sort(context, by_id("course-c1", "i-1"), given, of_class, [], served=served)
    if any(
        one.details.get("owner", "") not in ("", "s1") or one.at < since - timedelta(minutes=5)
        for one in of_class
    ):
        raise Wrong(f"in another's name, or before its launch: {of_class}")
    if any(one.subject not in ("i-1", "i-1/root") for one in facts) or len(problems) > 2:
        raise Wrong(f"{facts} {problems}")
    _facts_are_reported(facts)


def _told_seed() -> bytes:
    kinds = ("launched", "started", "address", "usage", "ended")
    own = [one for one in _some_facts() if one.kind in kinds and one.subject == "i-1"]
    return b"\n".join(replace(one, source=Source.AGENT).line().encode() for one in own)


def _ledger_seed() -> bytes:
    path = emptied("ledger-seed") / "ledger.sqlite"
    Ledger(path).append(_some_facts())
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA journal_mode = DELETE")
    return path.read_bytes()


def _ledger(given: bytes) -> None:
    path = emptied("ledger") / "ledger.sqlite"
    path.write_bytes(given)
    _facts_are_reported(Ledger(path).facts())


def _rows_in_a_ledger(given: bytes) -> None:
    """A sound SQLite file whose rows are not: what another program, or a slip with `sqlite3`, leaves."""
    path = emptied("rows") / "ledger.sqlite"
    Ledger(path).append(_some_facts()[:1])
    with closing(sqlite3.connect(path)) as connection:
        for number, line in enumerate(given.split(b"\n")):
            cells = [cell.decode("utf-8", "replace") for cell in line.split(b"\t")][:5]
            if len(cells) == 5:
                values = (str(number), *cells)
                connection.execute(
                    "INSERT INTO facts (digest, kind, subject, at, source, details) VALUES (?, ?, ?, ?, ?, ?)",
                    values,
                )
        connection.commit()
    _facts_are_reported(Ledger(path).facts())


def _rows_seed() -> bytes:
    rows = []
    for one in _some_facts():
        told = json.loads(one.line())
        rows.append(
            "\t".join(
                [
                    told["kind"],
                    told["subject"],
                    told["at"],
                    told["source"],
                    json.dumps(told["details"]),
                ]
            )
        )
    return "\n".join(rows).encode()


_PASTED = (
    b"[default]\naws_access_key_id=ASIAABCDEFGHIJKLMNOP\naws_secret_access_key="
    + b"s" * 40
    + b"\naws_session_token="
    + b"t" * 300
    + b"\n",
    b"export AWS_ACCESS_KEY_ID=AKIAABCDEFGHIJKLMNOP\nexport AWS_SECRET_ACCESS_KEY='"
    + b"s" * 40
    + b"'\n",
    b'$Env:AWS_ACCESS_KEY_ID="AKIAABCDEFGHIJKLMNOP"\r\n$Env:AWS_SECRET_ACCESS_KEY="'
    + b"s" * 40
    + b'"\r\n',
)


def _pasted(given: bytes) -> None:
    text = given.decode("utf-8", "surrogateescape")
    try:
        found = parse_pasted(text)
    except Exception as error:
        words = set(text.split()) - {
            "aws_access_key_id",
            "aws_secret_access_key",
            "aws_session_token",
        }
        secrets = [word for word in words if len(word) > 20 and word in str(error)]
        if secrets:
            raise Wrong("an error that shows what was pasted") from error
        raise
    path = folder() / "credentials"
    write_credentials(path, found, profile="p")
    written = path.read_text("ascii").splitlines()
    if len(written) != 3 + bool(found.session_token) or found.access_key_id not in written[1]:
        raise Wrong("credentials that read as something else")


def _cost(given: bytes) -> None:
    document = read_document(given)
    costs = cost_of(document.timeline, as_of=document.as_of or _NOW)
    cost_lines(render(costs, credit_usd=document.credit_usd))


def _known_hosts(path: Path) -> None:
    key = hostkeys.HostKey(bytes(32))
    before = hostkeys.pinned(path, "i-2")
    hostkeys.pin(path, "i-1", [key])
    if set(hostkeys.pinned(path, "i-1")) != {key} or hostkeys.pinned(path, "i-2") != before:
        raise Wrong("a pin that does not read back, or moved another one")
    hostkeys.forget(path, "i-1")


def _statement(path: Path) -> None:
    found = read_statement(path)
    total = sum((one.usd for one in found.sums), Decimal())
    if not total.is_finite() or found.unreadable > found.lines:
        raise Wrong(f"{found.unreadable} of {found.lines} lines unreadable, {total} in all")


def _feed(given: bytes) -> None:
    """Only what is taken for a feed: other bytes are the target `statement`'s, which is a hundred times as slow."""
    is_feed = given.startswith((_FEED[:9], b"\x1f\x8b"))
    from_file("feed-statement", _statement)(given if is_feed else _FEED[:9] + given)


_FEED = (
    b"#Version: 1.0\n#Fields: Timestamp UsageType Operation InstanceID MyBidID MyMaxPrice MarketPrice Charge Version\n"
    b"2026-11-02 13:00:00 UTC\tSpotUsage:g4dn.xlarge\tRunInstances:SV001\ti-1\tsir-1\t0.526 USD\t0.160 USD\t0.160 USD\t1\n"
)


def _lines_of(name: str, count: int) -> bytes:
    with gzip.open(_BILLING / name) as file:
        return b"".join(file.readline() for _ in range(count))


def _parquet() -> bytes:
    import duckdb

    path = folder() / "seed.parquet"
    (folder() / "seed.csv").write_bytes(_CUR_2)
    with duckdb.connect() as connection:
        query = f"COPY (SELECT * FROM read_csv('{folder()}/seed.csv')) TO '{path}' (FORMAT parquet)"  # noqa: S608 - paths of ours
        connection.execute(query)
    return path.read_bytes()


_CUR_2 = (
    b"line_item_usage_start_date,line_item_resource_id,line_item_line_item_type,line_item_usage_type,"
    b"line_item_unblended_cost,line_item_currency_code\n"
    b"2026-11-02 13:00:00,i-1,Usage,SpotUsage:g4dn.xlarge,0.1600000000,USD\n2026-11-02T13:00:00Z,,Credit,,-0.16,USD\n"
)

_COSTS = [json.loads(path.read_bytes())["document"] for path in sorted(_COST.glob("[!r]*.json"))]
_FACT_LINES = [json.loads(one.line()) for one in _some_facts()]

TARGETS = (
    Target(
        "config",
        "store",
        from_file("config.toml", _config),
        (_CONFIG,),
        words=(b"~x", b"nan", b"inf", b"1e99", b"0x", b"\\u0000", b"[profiles."),
        large=190_000,
        exits=(2,),
        names=(r"config\.toml: ",),
    ),
    Target(
        "journal",
        "store",
        either([_journal_records()], from_file("journal.jsonl", _journal), as_lines),
        (as_lines(_journal_records()), MARK),
        exits=(),
        names=(),
    ),
    Target(
        "ledger-import",
        "store",
        either([_FACT_LINES], _import, as_lines),
        (as_lines(_FACT_LINES), MARK),
        words=(b"0001-01-01T00:00:00Z", b"\\ud800", b"1E+999999"),
        exits=(2,),
        names=(
            r"^line \d+ ",
            r"at byte \d+",
        ),
    ),
    Target(
        "ledger-file",
        "store",
        _ledger,
        (_ledger_seed(),),
        exits=(2,),
        names=(r"ledger\.sqlite",),
    ),
    Target(
        "told-costs",
        "launch",
        _told,
        (_told_seed(),),
        words=(b"i-1/root", b"999999999", b"s2", b"1999-"),
        exits=(),
        names=(),
    ),
    Target(
        "ledger-rows",
        "store",
        _rows_in_a_ledger,
        (_rows_seed(),),
        words=(b"0001-01-01T00:00:00Z", b"{}", b"\t", b"1E+999999"),
        exits=(2,),
        names=(r"ledger\.sqlite holds what is no fact: the [\d,]+\. of [\d,]+, ",),
    ),
    Target(
        "credentials",
        "store",
        _pasted,
        _PASTED,
        exits=(2,),
        names=(
            r"^line \d+ of the pasted text: `",
            r"the pasted text has no `",
            r"`aws_session_token` is missing",
        ),
    ),
    Target(
        "known-hosts",
        "remote",
        from_file("known_hosts", _known_hosts),
        (
            b"i-1 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n",
        ),
        exits=(1,),
        names=(
            r"i-1",
            r"known_hosts",
        ),
    ),
    Target(
        "cost-timeline",
        "spending",
        either(_COSTS, _cost, as_json),
        (*map(as_json, _COSTS[:6]), MARK),
        words=(b"9" * 40, b"0.1", b"1e-99"),
        exits=(2,),
        names=(
            r"\$",
            r"at byte \d+",
            r"line \d+, column",
            r"the key `",
            r"the file has -?(NaN|Infinity)",
            r"the file has a number with too many digits, ",
            r"missing_price: .+ needs",
        ),
    ),
    Target(
        "spot-feed",
        "store",
        _feed,
        (_FEED, gzip.compress(_FEED)),
        words=(b"1E+999999 USD", b"\x1f\x8b"),
        exits=(2,),
        names=(r"/feed-statement",),
    ),
    Target(
        "statement",
        "store",
        from_file("statement", _statement),
        (
            _CUR_2,
            gzip.compress(_CUR_2),
            _parquet(),
            _lines_of("focus_1.0_sample_1000.csv.gz", 4),
            _lines_of("cur_legacy_generated_2026-10.csv.gz", 4),
        ),
        exits=(2,),
        names=(r"/statement",),
    ),
)
