"""Whose address counts where proxies stand between."""

from hypothesis import given
from hypothesis import strategies as st

from freehold.gateway.forwarded import caller_address

PROXIES = ("10.0.0.0/8", "fd00::/8")
CALLER = st.ip_addresses(v=4).map(str).filter(lambda a: not a.startswith("10."))
PROXY = st.ip_addresses(network="10.0.0.0/8").map(str)


def test_who_connects_is_the_caller_where_nobody_is_trusted():
    assert caller_address("192.0.2.1", b"203.0.113.9", ()) == "192.0.2.1"


def test_a_stranger_may_claim_what_they_like():
    assert caller_address("192.0.2.1", b"10.0.0.9", PROXIES) == "192.0.2.1"
    assert caller_address("192.0.2.1", None, PROXIES) == "192.0.2.1"


@given(CALLER, st.lists(PROXY, max_size=5), PROXY, st.lists(CALLER | PROXY | st.text(max_size=20), max_size=4))
def test_the_last_stranger_counts_whatever_they_claimed(caller, chain, peer, claimed):
    written = ", ".join([*claimed, caller, *chain]).encode("utf-8", "replace")
    assert caller_address(peer, written, PROXIES) == caller


@given(PROXY, st.binary(max_size=200))
def test_no_header_raises(peer, written):
    assert caller_address(peer, written, PROXIES)


def test_as_some_proxies_write_it():
    for written in (b"203.0.113.9:4711", b" 203.0.113.9 ", b"203.0.113.9, 10.1.1.1:80"):
        assert caller_address("10.0.0.1", written, PROXIES) == "203.0.113.9"
    for written in (b"[2001:db8::1]:443", b"[2001:db8::1]", b"2001:db8::1, fd00::7", b"2001:DB8:0::1"):
        assert caller_address("fd00::5", written, PROXIES) == "2001:db8::1"


def test_a_proxy_that_wrote_nonsense_is_all_that_is_known():
    assert caller_address("10.0.0.1", b"203.0.113.9, unknown, 10.0.0.2", PROXIES) == "10.0.0.2"
    assert caller_address("10.0.0.1", b"203.0.113.9, _hidden", PROXIES) == "10.0.0.1"
    assert caller_address("10.0.0.1", b"", PROXIES) == "10.0.0.1"


def test_callers_of_one_house_are_the_first_of_them():
    assert caller_address("10.0.0.1", b"10.9.9.9, 10.0.0.2", PROXIES) == "10.9.9.9"


def test_an_ipv4_proxy_on_an_ipv6_socket():
    assert caller_address("::ffff:10.0.0.1", b"203.0.113.9", PROXIES) == "203.0.113.9"


def test_an_endless_header_is_not_read_to_its_end():
    assert caller_address("10.0.0.1", b"10.0.0.3," * 8000 + b"10.0.0.2", PROXIES) == "10.0.0.3"
