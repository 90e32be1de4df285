"""Security groups as firewall rules: what is listed comes in, and nothing else."""

from __future__ import annotations

import pytest

from gpulab.sandbox.machines import Ingress
from gpulab.sandbox.machines.container.firewall import admit, expel, ruleset


@pytest.mark.parametrize(
    ("way", "rule"),
    [
        (Ingress("tcp", 22, 22, "203.0.113.5/32"), "ip saddr 203.0.113.5/32 tcp dport 22-22"),
        (Ingress("6", 8000, 8100, "0.0.0.0/0"), "ip saddr 0.0.0.0/0 tcp dport 8000-8100"),
        (Ingress("udp", 53, 53, "10.77.0.0/17"), "ip saddr 10.77.0.0/17 udp dport 53-53"),
        (Ingress("tcp", -1, -1, "10.0.0.0/8"), "ip saddr 10.0.0.0/8 tcp dport 0-65535"),
        (Ingress("-1", -1, -1, "203.0.113.5/24"), "ip saddr 203.0.113.0/24"),
        (Ingress("icmp", -1, -1, "0.0.0.0/0"), "ip saddr 0.0.0.0/0 ip protocol icmp"),
        (Ingress("icmp", 8, -1, "0.0.0.0/0"), "ip saddr 0.0.0.0/0 ip protocol icmp icmp type 8"),
    ],
)
def test_each_way_in_becomes_one_rule(way, rule):
    """A rule that is wider than its security group would let a test pass that AWS would fail."""
    text = admit("m1x1", "10.77.1.1", [way], is_new=False)

    assert text.splitlines() == [
        "flush chain ip gpulab m1x1",
        f"add rule ip gpulab m1x1 {rule} accept",
    ]


@pytest.mark.parametrize(
    "way",
    [
        Ingress("tcp", 22, 22, "2001:db8::/32"),
        Ingress("tcp", 22, 22, "sg-0123"),
        Ingress("gre", -1, -1, "0.0.0.0/0"),
        Ingress("tcp", 22, 22, "0.0.0.0/0 accept; flush ruleset"),
    ],
)
def test_what_cannot_be_said_in_ipv4_opens_nothing(way):
    """Unknown words must close, not open, and never become part of the rules' text."""
    text = admit("m1x1", "10.77.1.1", [way], is_new=False)

    assert text == "flush chain ip gpulab m1x1\n"


def test_a_new_instance_is_known_only_after_its_rules():
    """Between the two a packet would meet an empty chain at best."""
    text = admit("m1x1", "10.77.1.1", [Ingress("tcp", 22, 22, "0.0.0.0/0")], is_new=True)

    assert [line.split()[1] for line in text.splitlines()] == ["chain", "rule", "element"]
    assert text.endswith("add element ip gpulab guests { 10.77.1.1 : jump m1x1 }\n")


def test_an_instance_that_went_leaves_no_rule():
    """Its address is used again, by somebody else's instance."""
    text = expel("m1x1", "10.77.1.1")

    assert text.splitlines() == [
        "delete element ip gpulab guests { 10.77.1.1 : jump m1x1 }",
        "flush chain ip gpulab m1x1",
        "delete chain ip gpulab m1x1",
    ]


def test_an_empty_network_drops_what_comes_in_on_both_ways():
    """From the host's side packets pass the router, from a neighbour they could pass the bridge."""
    text = ruleset(network="10.77.0.0/17", host="10.77.128.1")

    assert text.count("policy drop") == 2
    assert 'oifname "uplink" ip daddr 10.77.128.1 accept' in text
