"""R17 and the bill: what things cost, and what AWS's late money sources say about it."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import boto3
import pytest
from botocore.exceptions import UnknownServiceError

from gpulab.sandbox import Sandbox
from gpulab.sandbox.books import ebs_cost
from gpulab.sandbox.clock import ManualClock

HOUR = 3600


@pytest.fixture
def priced(sandbox):
    """The sandbox with round prices: 0.36 USD/h spot in us-east-1a."""
    sandbox.set_price("g4dn.xlarge", "us-east-1a", "0.36")
    return sandbox


def end(sandbox, ec2, id_):
    """Terminate and wait until it is over."""
    ec2.terminate_instances(InstanceIds=[id_])
    sandbox.advance(60)


# -- the bill -----------------------------------------------------------------------------------------------------------------


def test_a_run_is_billed_by_the_second(priced, ec2, running):
    """From running to the user's end; 0.36 USD/h is 0.0001 a second."""
    id_ = running()

    priced.advance(1000 - 2)
    end(priced, ec2, id_)

    assert Decimal("0.1000") == priced.bill().of_kind("instance")


def test_a_short_run_costs_a_minute(priced, ec2, running):
    """Each start costs 60 seconds at least."""
    id_ = running()

    end(priced, ec2, id_)

    assert Decimal("0.0060") == priced.bill().of_kind("instance")


def test_an_instance_hour_keeps_the_price_it_began_with(priced, ec2, running):
    """A change counts from the run's next hour on, not from the clock's."""
    id_ = running()
    priced.advance(HOUR / 2)
    priced.set_price("g4dn.xlarge", "us-east-1a", "0.72")

    priced.advance(1.5 * HOUR - 2)
    end(priced, ec2, id_)

    assert Decimal("0.36") + Decimal("0.72") == priced.bill().of_kind("instance")


@pytest.mark.parametrize(("seconds", "expected"), [(3599, "0"), (3600, "0.36")])
def test_a_first_hour_that_aws_ends_is_free(priced, running, seconds, expected):
    """At 3,600 seconds the gift is over."""
    id_ = running()

    priced.interrupt(id_, in_seconds=seconds - 2)
    priced.advance(2 * HOUR)

    assert Decimal(expected) == priced.bill().of_kind("instance")


def test_an_on_demand_run_costs_the_list_price(sandbox, ec2, running):
    """A g4dn.xlarge in us-east-1 is 0.526 USD an hour."""
    id_ = running(InstanceMarketOptions=None)

    sandbox.advance(HOUR - 2)
    end(sandbox, ec2, id_)

    assert Decimal("0.526") == sandbox.bill().of_kind("instance")


def test_a_stopped_instance_costs_its_disk_only(sandbox, ec2, running):
    """The address goes with the run; the volume stays."""
    id_ = running(InstanceMarketOptions=None)
    ec2.stop_instances(InstanceIds=[id_])
    sandbox.advance(60)
    before = sandbox.bill()

    sandbox.advance(24 * HOUR)

    after = sandbox.bill()
    assert (Decimal(0), Decimal(0), True) == (
        after.of_kind("instance") - before.of_kind("instance"),
        after.of_kind("ipv4") - before.of_kind("ipv4"),
        after.of_kind("ebs") > before.of_kind("ebs"),
    )


def test_an_address_costs_half_a_cent_an_hour(sandbox, ec2, running):
    """Public IPv4 in use; an idle Elastic IP costs the same."""
    id_ = running()
    ec2.allocate_address(Domain="vpc")

    sandbox.advance(HOUR - 2)
    end(sandbox, ec2, id_)

    lines = {line.usage_type: line.usd for line in sandbox.bill().lines if line.kind == "ipv4"}
    assert Decimal("0.005") == lines["PublicIPv4:InUseAddress"]
    assert lines["PublicIPv4:IdleAddress"] > Decimal("0.005")


def test_a_volume_is_paid_by_the_seconds_of_its_utc_month():
    """28 days in February 2026 and 31 in March: 100 GB gp3 across the border."""
    cost = ebs_cost(100, Decimal("0.08"), datetime(2026, 2, 28, 23, tzinfo=UTC), 2 * HOUR)

    february, march = Decimal(8) * HOUR / (28 * 86_400), Decimal(8) * HOUR / (31 * 86_400)
    assert february + march == cost


def test_a_volume_that_outlives_its_instance_goes_on_costing(sandbox, ec2, running):
    """The forgotten data disk."""
    keep = [{"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 100, "DeleteOnTermination": False}}]
    id_ = running(BlockDeviceMappings=keep)
    end(sandbox, ec2, id_)
    before = sandbox.bill().total_usd

    sandbox.advance(30 * 24 * HOUR)

    cost = sandbox.bill().total_usd - before
    assert Decimal("7.8") < cost < Decimal("8.0")


# -- credits ------------------------------------------------------------------------------------------------------------------


def test_plain_moto_has_no_credits(plain_moto):
    """`billing` and `freetier` are not among moto's services, so calls to them leave the machine."""
    from moto import backend_index

    assert [] == [s for s, _ in backend_index.backend_url_patterns if s in ("billing", "freetier")]


def test_credit_is_estimated_a_day_late(priced, client, ec2, running):
    """What was spent today is not in AWS's figure yet."""
    priced.set_credit("50")
    billing = client("billing")
    ask = {"accountId": "123456789012", "startDate": priced.now() - timedelta(days=200)}
    id_ = running()
    priced.advance(10 * HOUR)
    end(priced, ec2, id_)
    early = billing.get_credits(**ask)["credits"][0]

    priced.advance(25 * HOUR)

    late = billing.get_credits(**ask)["credits"][0]
    spent = priced.bill().total_usd
    assert ("50.0000000000", "50.0000000000", f"{50 - spent:.10f}") == (
        early["estimatedAmount"]["currencyAmount"],
        late["remainingAmount"]["currencyAmount"],
        late["estimatedAmount"]["currencyAmount"],
    )
    assert spent > Decimal("3.6")


def test_the_remaining_amount_follows_the_closed_month(priced, client, ec2, running):
    """And the history says which month took it."""
    priced.set_credit("50")
    id_ = running()
    priced.advance(10 * HOUR)
    end(priced, ec2, id_)
    spent = priced.bill().total_usd
    priced.advance(20 * 24 * HOUR)
    billing = client("billing")
    account = {"accountId": "123456789012"}

    credit = billing.get_credits(**account, startDate=priced.began_at)["credits"][0]
    history = billing.get_credit_allocation_history(
        **account, startDate=priced.began_at, endDate=priced.now()
    )["creditAllocationHistoryList"]

    assert [("2026-11", f"{spent:.10f}", False)] == [
        (h["billingMonth"], h["creditAmount"]["currencyAmount"], h["isEstimatedBill"])
        for h in history
    ]
    assert f"{50 - spent:.10f}" == credit["remainingAmount"]["currencyAmount"]


def test_money_sources_can_be_closed(sandbox, client, code_of):
    """Most students' users may not read billing; and a start over a year ago is refused."""
    billing = client("billing")
    ask = {"accountId": "123456789012"}
    codes = [code_of(billing.get_credits, **ask, startDate=sandbox.now() - timedelta(days=800))]

    sandbox.deny("billing:*")

    codes.append(code_of(billing.get_credits, **ask, startDate=sandbox.now()))
    assert ["ValidationException", "AccessDeniedException"] == codes


def test_the_account_plan(sandbox, client):
    """A free plan has an end; a paid one does not."""
    freetier = client("freetier")
    paid = freetier.get_account_plan_state()

    sandbox.set_plan("FREE")

    free = freetier.get_account_plan_state()
    assert ("PAID", 100.0, False) == (
        paid["accountPlanType"],
        paid["accountPlanRemainingCredits"]["amount"],
        "accountPlanExpirationDate" in paid,
    )
    assert ("FREE", True) == (free["accountPlanType"], "accountPlanExpirationDate" in free)


def test_an_older_account_has_no_plan(client, code_of):
    """AWS says so with an error, and that is not a failure."""
    with Sandbox(ready=False):
        assert "ResourceNotFoundException" == code_of(client("freetier").get_account_plan_state)


# -- Cost Explorer ------------------------------------------------------------------------------------------------------------


def test_plain_motos_cost_explorer_is_empty(plain_moto, client):
    """It plays back what a test put in."""
    answer = client("ce").get_cost_and_usage(
        TimePeriod={"Start": "2026-11-01", "End": "2026-12-01"},
        Granularity="MONTHLY",
        Metrics=["UnblendedCost"],
    )

    assert [] == answer["ResultsByTime"]


@pytest.fixture
def spent(client, code_of):
    """A world three days after a ten-hour run, with 2 USD of credit."""
    with Sandbox(clock=ManualClock(datetime(2026, 11, 16, 9, tzinfo=UTC))) as sandbox:
        sandbox.set_credit("2")
        sandbox.set_price("g4dn.xlarge", "us-east-1a", "0.36")
        ec2 = client("ec2")
        image = next(iter(sandbox.images.parameters("us-east-1").values()))[0]
        launched = ec2.run_instances(
            ImageId=image,
            InstanceType="g4dn.xlarge",
            MinCount=1,
            MaxCount=1,
            Placement={"AvailabilityZone": "us-east-1a"},
            InstanceMarketOptions={"MarketType": "spot"},
            TagSpecifications=[
                {"ResourceType": t, "Tags": [{"Key": "gpulab:owner", "Value": "s1"}]}
                for t in ("instance", "volume")
            ],
        )
        sandbox.advance(10 * HOUR + 8)
        ec2.terminate_instances(InstanceIds=[launched["Instances"][0]["InstanceId"]])
        sandbox.advance(3 * 24 * HOUR)
        yield sandbox


def explore(client, start="2026-11-16", end="2026-11-19", **asked):
    """Ask Cost Explorer for daily costs."""
    return client("ce").get_cost_and_usage(
        TimePeriod={"Start": start, "End": end},
        Granularity="DAILY",
        Metrics=["UnblendedCost"],
        **asked,
    )


def by_key(answer):
    """All groups of all days: key to amount."""
    return {
        group["Keys"][0]: Decimal(group["Metrics"]["UnblendedCost"]["Amount"])
        for day in answer["ResultsByTime"]
        for group in day["Groups"]
        if Decimal(group["Metrics"]["UnblendedCost"]["Amount"])
    }


def test_the_net_cost_hides_what_credit_pays(spent, client):
    """The trap: 0 USD for months, then a real invoice."""
    days = explore(client)["ResultsByTime"]

    gross = by_key(explore(client, GroupBy=[{"Type": "DIMENSION", "Key": "RECORD_TYPE"}]))
    net = Decimal(days[0]["Total"]["UnblendedCost"]["Amount"])
    assert ["2026-11-16", "2026-11-17", "2026-11-18"] == [d["TimePeriod"]["Start"] for d in days]
    assert Decimal("-2") == round(gross["Credit"], 8)
    assert round(gross["Usage"] + gross["Credit"], 8) == round(net, 8)
    assert Decimal("3.6") < gross["Usage"] < Decimal("3.7")


def test_costs_are_told_by_service_and_owner(spent, client):
    """EC2's cost is divided over three services, and tags name who."""
    usage = {"Dimensions": {"Key": "RECORD_TYPE", "Values": ["Usage"]}}

    services = by_key(
        explore(client, Filter=usage, GroupBy=[{"Type": "DIMENSION", "Key": "SERVICE"}])
    )
    owners = by_key(explore(client, Filter=usage, GroupBy=[{"Type": "TAG", "Key": "gpulab:owner"}]))

    assert {
        "Amazon Elastic Compute Cloud - Compute": Decimal("3.6"),
        "Amazon Virtual Private Cloud": Decimal("0.05"),
    } == {name: usd for name, usd in services.items() if name != "EC2 - Other"}
    assert ["gpulab:owner$s1"] == list(owners)


def test_the_last_day_is_missing(spent, client, ec2_again):
    """Cost Explorer is a day behind, and End is exclusive."""
    days = explore(client, start="2026-11-18", end="2026-11-20")["ResultsByTime"]

    assert [0, 0] == [Decimal(day["Total"]["UnblendedCost"]["Amount"]) for day in days]
    assert spent.bill().total_usd > 0


@pytest.fixture
def ec2_again(spent, client):
    """An instance that was launched within the last day."""
    image = next(iter(spent.images.parameters("us-east-1").values()))[0]
    client("ec2").run_instances(ImageId=image, InstanceType="g4dn.xlarge", MinCount=1, MaxCount=1)
    spent.advance(HOUR)


@pytest.mark.parametrize(
    "asked",
    [
        {"GroupBy": [{"Type": "DIMENSION", "Key": "CHARGE_TYPE"}]},
        {"Filter": {"Dimensions": {"Key": "CHARGE_TYPE", "Values": ["Usage"]}}},
        {"GroupBy": [{"Type": "DIMENSION", "Key": k} for k in ("SERVICE", "REGION", "USAGE_TYPE")]},
        {"end": "2026-11-16"},
    ],
    ids=str,
)
def test_what_cost_explorer_refuses(sandbox, client, code_of, asked):
    """The console's words are not the API's, and two groups are the limit."""
    assert "ValidationException" == code_of(explore, client=client, **asked)


@pytest.mark.parametrize(("include_credit", "expected"), [(True, "1.66"), (False, "3.66")])
def test_a_budget_that_counts_credit_hardly_moves(spent, client, include_credit, expected):
    """`IncludeCredit` is true unless it is said, and then a budget never fires while credit pays."""
    budgets = client("budgets")
    budget = {
        "BudgetName": "lab",
        "BudgetLimit": {"Amount": "10", "Unit": "USD"},
        "TimeUnit": "MONTHLY",
        "BudgetType": "COST",
        "CostTypes": {"IncludeCredit": include_credit},
    }
    budgets.create_budget(AccountId="123456789012", Budget=budget)

    found = budgets.describe_budgets(AccountId="123456789012")["Budgets"][0]

    amount = Decimal(found["CalculatedSpend"]["ActualSpend"]["Amount"])
    assert Decimal(expected) == round(amount, 2)


def a_budget_action(client, usd, *, trusts="budgets.amazonaws.com"):
    """A yearly budget before credits whose action forbids launches to `user/student`."""
    iam, budgets = client("iam"), client("budgets")

    def policy(effect, action):
        statement = {"Effect": effect, "Action": action, "Resource": "*"}
        return json.dumps({"Version": "2012-10-17", "Statement": [statement]})

    trust = {"Effect": "Allow", "Principal": {"Service": trusts}, "Action": "sts:AssumeRole"}
    role = iam.create_role(
        RoleName="acts",
        AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [trust]}),
    )["Role"]["Arn"]
    iam.put_role_policy(
        RoleName="acts", PolicyName="p", PolicyDocument=policy("Allow", "iam:AttachUserPolicy")
    )
    deny = iam.create_policy(PolicyName="no", PolicyDocument=policy("Deny", "ec2:RunInstances"))[
        "Policy"
    ]["Arn"]
    budgets.create_budget(
        AccountId="123456789012",
        Budget={
            "BudgetName": "lab",
            "BudgetLimit": {"Amount": usd, "Unit": "USD"},
            "TimeUnit": "ANNUALLY",
            "BudgetType": "COST",
            "CostTypes": {"IncludeCredit": False},
        },
    )
    return lambda: budgets.create_budget_action(
        AccountId="123456789012",
        BudgetName="lab",
        NotificationType="ACTUAL",
        ActionType="APPLY_IAM_POLICY",
        ActionThreshold={"ActionThresholdValue": 100.0, "ActionThresholdType": "PERCENTAGE"},
        Definition={"IamActionDefinition": {"PolicyArn": deny, "Users": ["student"]}},
        ExecutionRoleArn=role,
        ApprovalModel="AUTOMATIC",
        Subscribers=[{"SubscriptionType": "EMAIL", "Address": "ann@example.org"}],
    )


def action_status(client):
    found = client("budgets").describe_budget_actions_for_budget(
        AccountId="123456789012", BudgetName="lab"
    )["Actions"]
    return [action["Status"] for action in found]


def test_plain_moto_has_no_budget_actions(plain_moto, client):
    """The guard that forbids launches could not be tried at all."""
    with pytest.raises(NotImplementedError, match="describe_budget_actions_for_budget"):
        action_status(client)


def test_a_spent_budget_attaches_its_policy_half_a_day_later(spent, client, code_of):
    """Budgets are updated every 8 to 12 hours: until then nothing is forbidden, and what runs goes on."""
    a_budget_action(client, "3")()
    image = next(iter(spent.images.parameters("us-east-1").values()))[0]
    wish = {"ImageId": image, "InstanceType": "g4dn.xlarge", "MinCount": 1, "MaxCount": 1}
    launch = client("ec2").run_instances

    at_once = code_of(launch, **wish)
    spent.advance(10 * HOUR)

    assert ("ok", ["EXECUTION_SUCCESS"]) == (at_once, action_status(client))
    assert "UnauthorizedOperation" == code_of(launch, **wish)
    assert 1 == len(spent.instances("running"))


def test_a_budget_that_is_not_spent_waits(spent, client):
    """An action that came too early would end a lab for nothing."""
    a_budget_action(client, "30")()

    spent.advance(20 * HOUR)

    assert ["STANDBY"] == action_status(client)


def test_an_action_whose_role_may_not_attach_fails(spent, client):
    """A role without the right reads as armed until the day it is needed."""
    a_budget_action(client, "3")()
    client("iam").delete_role_policy(RoleName="acts", PolicyName="p")

    spent.advance(10 * HOUR)

    assert ["EXECUTION_FAILURE"] == action_status(client)


def test_a_role_that_budgets_cannot_assume_is_refused(spent, client, code_of):
    """The commonest mistake: the role trusts another service."""
    create = a_budget_action(client, "3", trusts="ec2.amazonaws.com")

    assert "AccessDeniedException" == code_of(create)


def test_an_older_botocore_does_not_know_the_credits(sandbox):
    """`billing:GetCredits` came with botocore 1.43.41, and a student's installation may be older."""
    with sandbox.old_botocore("billing", "GetCredits"):
        older = boto3.Session().client("billing")
    with sandbox.old_botocore("freetier"):
        with pytest.raises(UnknownServiceError):
            boto3.Session().client("freetier")

    assert (False, True) == (
        hasattr(older, "get_credits"),
        hasattr(older, "get_credit_allocation_history"),
    )


# -- the price list -----------------------------------------------------------------------------------------------------------


def test_plain_moto_has_no_price_list(plain_moto, client, code_of):
    """An on-demand price could come from nowhere."""
    assert "ok" != code_of(client("pricing").get_products, ServiceCode="AmazonEC2")


def test_the_price_list_has_one_product_for_a_type_and_region(sandbox, client):
    """Each product is a JSON text inside the JSON answer."""
    wanted = {"instanceType": "g4dn.xlarge", "regionCode": "eu-west-1", "operatingSystem": "Linux"}

    answer = client("pricing").get_products(
        ServiceCode="AmazonEC2",
        Filters=[{"Type": "TERM_MATCH", "Field": k, "Value": v} for k, v in wanted.items()],
    )

    product = json.loads(answer["PriceList"][0])
    term = next(iter(product["terms"]["OnDemand"].values()))
    price = next(iter(term["priceDimensions"].values()))["pricePerUnit"]["USD"]
    assert (1, "EU (Ireland)", Decimal("0.5681")) == (
        len(answer["PriceList"]),
        product["product"]["attributes"]["location"],
        Decimal(price),
    )


def test_dates_are_days_of_utc(spent):
    """The ten hours lie inside one UTC day, or the daily sums above would be divided."""
    assert {date(2026, 11, 16)} == {
        e.at.date() for i in spent.instances_by_id.values() for e in i.events
    }
