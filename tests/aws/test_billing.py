"""The balance from AWS's own services, each of which may be missing: real botocore against answers on localhost."""

from __future__ import annotations

import json
import re
import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gpulab.aws.billing import account_plan, credits_of, spent_by_cost_explorer
from gpulab.aws.session import Cloud
from gpulab.cli.main import run
from gpulab.model.fact import FactKind, launched
from gpulab.model.market import Market
from gpulab.store.home import Home
from gpulab.store.ledger import Ledger

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
NEXT_YEAR = datetime(2099, 3, 1, tzinfo=UTC).timestamp()
DENIED = (400, {"__type": "AccessDeniedException", "Message": "is not authorized"})


def a_credit(**changes) -> dict:
    said = {
        "creditId": "1001",
        "accountId": "111122223333",
        "creditType": "Promotional",
        "initialAmount": {"currencyCode": "USD", "currencyAmount": "100.00"},
        "remainingAmount": {"currencyCode": "USD", "currencyAmount": "61.5000000001"},
        "description": "course",
        "startDate": 1_780_000_000,
        "endDate": NEXT_YEAR,
        "creditStatus": "ENABLED",
        "applicableProductNames": ["Amazon Elastic Compute Cloud", "Amazon S3"],
    }
    return said | changes


class Answers:
    """What the services on localhost say, by operation, and which were asked."""

    def __init__(self) -> None:
        self.by_operation: dict[str, tuple[int, dict]] = {}
        self.asked: list[str] = []
        self.arn = "arn:aws:iam::111122223333:user/anna"

    def reply(self, target: str, body: str) -> tuple[int, str]:
        operation = target.split(".")[-1] or re.findall(r"Action=(\w+)", body)[0]
        self.asked.append(operation)
        if operation == "GetCallerIdentity":
            return 200, _IDENTITY.format(arn=self.arn)
        if not target:
            return 403, _REFUSED
        unknown = (400, {"__type": "UnknownOperationException", "Message": "no such operation"})
        status, answer = self.by_operation.get(operation, unknown)
        return status, json.dumps(answer)


# Of everything else in XML, such as EC2.
_REFUSED = "<Response><Errors><Error><Code>UnauthorizedOperation</Code><Message>no</Message></Error></Errors></Response>"
_IDENTITY = (
    '<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>'
    "<Arn>{arn}</Arn><UserId>A</UserId><Account>111122223333</Account></GetCallerIdentityResult>"
    "<ResponseMetadata><RequestId>1</RequestId></ResponseMetadata></GetCallerIdentityResponse>"
)


@pytest.fixture
def answers():
    said = Answers()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            status, text = said.reply(self.headers.get("X-Amz-Target", ""), body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    said.url = f"http://127.0.0.1:{server.server_port}"
    yield said
    server.shutdown()
    server.server_close()


@pytest.fixture
def files(answers, tmp_path):
    config, credentials = tmp_path / "config", tmp_path / "credentials"
    config.write_text(f"[default]\nregion = us-east-1\nendpoint_url = {answers.url}\n")
    credentials.write_text("[default]\naws_access_key_id = AKIA1\naws_secret_access_key = s\n")
    return config, credentials


@pytest.fixture
def cloud(files) -> Cloud:
    config, credentials = files
    return Cloud(config_file=config, credentials_file=credentials, now=lambda: NOW)


def test_every_credit_is_read_with_its_amounts_dates_and_products(answers, cloud):
    """A student may have two credits, and one of them may not pay for GPUs."""
    answers.by_operation["GetCredits"] = 200, {"credits": [a_credit()]}

    answer = credits_of(cloud, now=NOW)

    (credit,) = answer.credits
    assert ("1001", Decimal("61.5000000001"), Decimal(100)) == (
        credit.id,
        credit.left_usd,
        credit.initial_usd,
    )
    assert datetime(2099, 3, 1, tzinfo=UTC) == credit.expires_at
    assert ("Amazon Elastic Compute Cloud", "Amazon S3") == credit.products
    assert ("", "billing:GetCredits") == (answer.unavailable, answer.source)


def test_open_bills_are_taken_off_where_aws_says_so(answers, cloud):
    """The remaining amount is that of closed bills; the estimate knows this month."""
    estimate = {"currencyCode": "USD", "currencyAmount": "40.25"}
    answers.by_operation["GetCredits"] = 200, {"credits": [a_credit(estimatedAmount=estimate)]}

    assert Decimal("40.25") == credits_of(cloud, now=NOW).credits[0].left_usd


def test_a_switched_off_or_foreign_credit_is_left_out_and_said(answers, cloud):
    """Money that will not pay must not be counted on, and not vanish silently either."""
    euros = {"currencyCode": "EUR", "currencyAmount": "5"}
    answers.by_operation["GetCredits"] = (
        200,
        {
            "credits": [
                a_credit(creditStatus="DISABLED"),
                a_credit(creditId="2", remainingAmount=euros),
            ]
        },
    )

    answer = credits_of(cloud, now=NOW)

    assert () == answer.credits
    assert ("credit 1001 is switched off", "credit 2 is not in USD") == answer.notes


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (DENIED, "could not read the credits: these credentials may not do that"),
        (
            (400, {"__type": "UnknownOperationException"}),
            "could not read the credits: AWS does not accept",
        ),
    ],
)
def test_a_source_that_will_not_answer_is_unavailable_not_a_failure(answers, cloud, reply, words):
    """Most students may not see the account's billing; the next source is asked."""
    answers.by_operation["GetCredits"] = reply

    answer = credits_of(cloud, now=NOW)

    assert answer.unavailable.startswith(words)
    assert () == answer.credits


def test_an_unreachable_endpoint_and_missing_credentials_are_unavailable(tmp_path):
    """On a train the ledger still answers."""
    (tmp_path / "config").write_text("[default]\nendpoint_url = http://127.0.0.1:9\n")
    (tmp_path / "none").write_text("")
    cloud = Cloud(config_file=tmp_path / "config", credentials_file=tmp_path / "none")

    answers = [credits_of(cloud, now=NOW), account_plan(cloud, now=NOW)]

    assert all(answer.unavailable.startswith("could not ") for answer in answers)


def test_an_old_botocore_is_unavailable(cloud):
    """`GetCredits` came in July 2026; a distribution's older botocore must not break the command."""

    class OldCloud:
        client = staticmethod(lambda *_: object())
        explained = cloud.explained

    answer = account_plan(OldCloud(), now=NOW)

    assert (
        "the installed botocore does not know freetier:get_account_plan_state" == answer.unavailable
    )


def test_a_free_plan_account_gets_a_plain_word(answers, cloud):
    """The commonest dead end of a new account: it has credit, and cannot launch any GPU."""
    answers.by_operation["GetAccountPlanState"] = (
        200,
        {
            "accountId": "111122223333",
            "accountPlanType": "FREE",
            "accountPlanStatus": "ACTIVE",
            "accountPlanRemainingCredits": {"amount": 140.1, "unit": "USD"},
            "accountPlanExpirationDate": "2099-05-01T00:00:00Z",
        },
    )

    answer = account_plan(cloud, now=NOW)

    assert Decimal("140.1") == answer.credits[0].left_usd
    assert datetime(2099, 5, 1, tzinfo=UTC) == answer.credits[0].expires_at
    assert "free plan, which cannot launch a GPU" in answer.notes[0]


def test_a_learner_lab_gets_a_plain_word(answers, cloud):
    """AWS Academy's labs look like an account but have neither GPUs nor spot."""
    answers.arn = "arn:aws:sts::111122223333:assumed-role/voclabs/user1=anna"
    answers.by_operation["GetCredits"] = 200, {"credits": []}

    assert "AWS Academy Learner Lab" in credits_of(cloud, now=NOW).notes[0]


def test_cost_explorer_tells_usage_and_credit_apart(answers, cloud):
    """The net is 0 while credits pay; only the parts show what is spent."""
    answers.by_operation["GetCostAndUsage"] = (
        200,
        {
            "ResultsByTime": [
                {"Total": {}, "Groups": [_group("Usage", "10.5"), _group("Credit", "-10.5")]},
                {"Total": {}, "Groups": [_group("Usage", "1.25"), _group("Credit", "-1")]},
            ]
        },
    )

    spent = spent_by_cost_explorer(cloud, begin=NOW - timedelta(days=60), end=NOW, now=NOW)

    assert {"Usage": Decimal("11.75"), "Credit": Decimal("-11.5")} == spent.by_record_type


def _group(name: str, usd: str) -> dict:
    return {"Keys": [name], "Metrics": {"UnblendedCost": {"Amount": usd, "Unit": "USD"}}}


# The command, end to end.


@pytest.fixture
def ledger(files, tmp_path, monkeypatch) -> Ledger:
    """A student's computer whose profile leads to the answers, with 50 dollars typed in."""
    config, credentials = files
    home = Home(tmp_path / "home")
    home.root.mkdir()
    home.config_file.write_text(
        f'[profiles.default]\naws_config_file = "{config}"\naws_credentials_file = "{credentials}"\n'
        'credit_usd = "50"\n'
    )
    monkeypatch.setenv("GPULAB_HOME", str(home.root))
    return Ledger(home.folder("default").ledger)


def a_running_instance() -> object:
    return launched(
        "i-1",
        at=datetime.now(UTC) - timedelta(hours=2),
        zone="us-east-1d",
        instance_type="g4dn.xlarge",
        market=Market.ON_DEMAND,
        usd_per_hour=Decimal("0.526"),
    )


def test_the_first_source_that_knows_is_taken_and_named(answers, ledger, capsys):
    """A figure without its source and age is worth little."""
    answers.by_operation["GetCredits"] = 200, {"credits": [a_credit()]}

    code = run(["credit"])

    out = capsys.readouterr().out
    assert 0 == code
    assert out.startswith("left: $61.50 (billing:GetCredits, read 0 s ago)\n  1001: $61.50, expires 2099-03-01\n")  # fmt: skip
    assert "now: $0.0000/h (0 instances, 0 disks)" in out
    assert ["GetCallerIdentity", "GetCredits"] == answers.asked
    assert ["61.5000000001"] == [f.details["left_usd"] for f in ledger.facts(FactKind.CREDIT)]


def test_the_answer_is_remembered_for_an_hour(answers, ledger, capsys):
    """`gpulab up` shows the balance beside each price; it must not cost two calls each time."""
    answers.by_operation["GetCredits"] = 200, {"credits": [a_credit()]}

    for arguments in (["credit"], ["credit"], ["credit", "--fresh"]):
        run(arguments)

    assert 2 == answers.asked.count("GetCredits")


def test_without_any_source_the_typed_figure_minus_the_ledger(answers, ledger, capsys):
    """Students who may not see billing still know where they stand, and why this source was used."""
    answers.by_operation |= {"GetCredits": DENIED, "GetAccountPlanState": DENIED}
    ledger.append([a_running_instance()])

    run(["credit"])

    out = capsys.readouterr().out
    assert out.startswith("left: $48.95 (your own figure minus the ledger)\n")
    assert "now: $0.5260/h (1 instance, 0 disks)\nat this pace it ends " in out
    assert "not available: billing:GetCredits: could not read the credits: these" in out
    assert "not available: freetier:GetAccountPlanState: could not read the account's plan" in out


def test_a_credit_that_does_not_pay_for_ec2_is_shown_but_not_counted(answers, ledger, capsys):
    """A credit for another service would promise GPU hours that nobody pays."""
    other = a_credit(creditId="77", applicableProductNames=["Amazon Polly"])
    old = a_credit(creditId="78", endDate=1_600_000_000)
    answers.by_operation["GetCredits"] = 200, {"credits": [other, old, a_credit()]}

    run(["credit"])

    out = capsys.readouterr().out
    assert "left: $61.50" in out
    assert "  77: $61.50 not counted: it does not pay for EC2\n" in out
    assert "  78: $61.50 not counted: expired on 2020-09-13\n" in out


def test_a_planned_lab_says_what_remains(answers, ledger, capsys):
    """Whether four hours still fit is the question before every lab."""
    answers.by_operation["GetCredits"] = 200, {"credits": [a_credit()]}

    run(["credit", "--plan", "4", "--at", "0.25"])

    out = capsys.readouterr().out
    assert "4.0 h at $0.2500/h with disk and address: at most $1.05\nthat leaves $60.45\n" in out


def test_cost_explorer_says_its_price_first_and_is_asked_once_a_day(answers, ledger, capsys):
    """At a cent a request, 300 students asking four times a day would cost 360 dollars a month."""
    answers.by_operation["GetCredits"] = 200, {"credits": [a_credit()]}
    groups = [_group("Usage", "38.5"), _group("Credit", "-38.5")]
    answers.by_operation["GetCostAndUsage"] = 200, {"ResultsByTime": [{"Groups": groups}]}

    run(["credit", "--cost-explorer", "--yes"])
    first = capsys.readouterr()
    run(["credit", "--cost-explorer", "--yes"])

    assert "Cost Explorer: AWS takes $0.01 for this request, from your credit\n" == first.err
    assert "  Credit: -$38.50\n  Usage: $38.50\n" in first.out
    assert 1 == answers.asked.count("GetCostAndUsage")
    assert "" == capsys.readouterr().err


def test_json_has_every_figure_as_text(answers, ledger, capsys):
    """A TA's script sums these for a class; floats would lose cents."""
    answers.by_operation["GetCredits"] = 200, {"credits": [a_credit()]}

    run(["credit", "--json"])

    document = json.loads(capsys.readouterr().out)
    assert ("61.5000000001", "billing:GetCredits", "0", None) == tuple(
        document[key] for key in ("left_usd", "source", "burn_usd_per_hour", "ends_at")
    )
    assert ["billing:GetCredits"] == [source["source"] for source in document["sources"]]
