"""The wire contract: what keys look like, which names may be in them, and where they live."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis.crc
from hypothesis import example, given
from hypothesis import strategies as st

from sfroute import PERSIST_FOREVER, InvalidArgument
from sfroute._contract.keys import (
    MAX_NAME_BYTES,
    MAX_POD,
    check_link_names,
    check_persist_seconds,
    check_pod,
    check_service_names,
    link_key,
    link_prefix,
    link_tag,
    operation_key,
    parse_link_key,
    slot_of,
    slot_of_tag,
    state_key,
    tagged_link_key,
    workload_key,
)
from sfroute.types import MAX_PERSIST_SECONDS


def names(forbidden: str) -> st.SearchStrategy[str]:
    """Every name the rules allow, the odd ones more often than they deserve."""
    characters = st.characters(exclude_categories=("Cc", "Cs"), exclude_characters=forbidden)
    odd = st.sampled_from(
        [name for name in (":", "::", "lk:", "state:a", " ", "0") if not set(name) & set(forbidden)]
    )
    return st.text(characters, min_size=1, max_size=20) | odd


namespaces = names(":{}")
uids = names("{}")
services = names("{}")


class TestFormats:
    def test_a_state_key(self) -> None:
        assert state_key("ns", "chat") == "sf:{ns:state:chat}"

    def test_a_workload_key(self) -> None:
        assert workload_key("ns", "chat") == "sf:{ns:workload:chat}"

    def test_a_link_key(self) -> None:
        assert link_key("ns", "ada", "chat") == "sf:{ns:lk:ada}chat"

    def test_the_hash_of_a_uids_links(self) -> None:
        assert link_prefix("ns", "ada") == "sf:{ns:lk:ada}"

    def test_an_operation_record(self) -> None:
        assert operation_key("ns", "ada", "t1") == "sf:op:{ns:lk:ada}:t1"

    @given(namespaces, uids, services)
    def test_the_short_way_to_a_link_key_gives_the_same_key(
        self, namespace: str, uid: str, service: str
    ) -> None:
        tag = link_tag(namespace, uid)
        assert tagged_link_key(tag, service) == link_key(namespace, uid, service).encode()
        assert tagged_link_key(tag, "") == link_prefix(namespace, uid).encode()
        assert slot_of_tag(tag) == slot_of(link_key(namespace, uid, service))


class TestParsing:
    @given(namespaces, uids, services)
    def test_it_inverts_the_link_key(self, namespace: str, uid: str, service: str) -> None:
        key = link_key(namespace, uid, service).encode()
        assert parse_link_key(key) == (namespace, uid, service)

    @given(namespaces, uids)
    def test_it_inverts_the_key_of_the_hash(self, namespace: str, uid: str) -> None:
        assert parse_link_key(link_prefix(namespace, uid).encode()) == (namespace, uid, None)

    @given(namespaces, services)
    def test_keys_of_other_kinds_are_no_link_keys(self, namespace: str, service: str) -> None:
        assert parse_link_key(state_key(namespace, service).encode()) is None
        assert parse_link_key(workload_key(namespace, service).encode()) is None
        assert parse_link_key(operation_key(namespace, service, "t1").encode()) is None

    @pytest.mark.parametrize(
        "key",
        [
            b"",
            b"sf:{",
            b"sf:{}",
            b"sf:{ns}",
            b"sf:{ns:lk:}chat",
            b"sf:{:lk:ada}chat",
            b"sf:{ns:lk:ada",
            b"sg:{ns:lk:ada}chat",
            b"sf:{ns:lk:\xff}chat",
        ],
    )
    def test_foreign_keys_are_no_link_keys(self, key: bytes) -> None:
        assert parse_link_key(key) is None

    @given(st.binary(max_size=40) | st.binary(max_size=20).map(lambda tail: b"sf:{ns:lk:" + tail))
    def test_it_reads_any_bytes(self, key: bytes) -> None:
        parsed = parse_link_key(key)
        assert parsed is None or parsed.namespace


class TestSlots:
    @given(st.binary(max_size=60))
    @example(b"{}x")
    @example(b"a{b}c{d}")
    @example(b"{{a}}")
    @example(b"}{a}")
    @example(b"{a")
    def test_they_are_those_of_redis_py(self, key: bytes) -> None:
        assert slot_of(key) == redis.crc.key_slot(key)

    @given(st.text(st.characters(codec="utf-8"), max_size=30))
    def test_text_has_the_slot_of_its_utf8(self, key: str) -> None:
        assert slot_of(key) == slot_of(key.encode())

    @pytest.mark.parametrize(("key", "slot"), [("123456789", 12739), ("foo", 12182), ("", 0)])
    def test_they_are_those_of_the_specification(self, key: str, slot: int) -> None:
        assert slot_of(key) == slot

    @given(namespaces, uids, services)
    def test_all_keys_of_a_uid_share_one(self, namespace: str, uid: str, service: str) -> None:
        keys = [
            link_key(namespace, uid, service),
            link_prefix(namespace, uid),
            operation_key(namespace, uid, "t1"),
        ]
        assert len({redis.crc.key_slot(key.encode()) for key in keys}) == 1


class TestNoAliases:
    @given(
        st.tuples(namespaces, uids, services | st.none()),
        st.tuples(namespaces, uids, services | st.none()),
    )
    @example(("a", "b:c", "d"), ("a", "b", "c:d"))
    @example(("a", "lk:b", "c"), ("a", "b", "c"))
    def test_different_links_have_different_keys(
        self, one: tuple[str, str, str | None], other: tuple[str, str, str | None]
    ) -> None:
        keys = {
            link_key(n, u, s) if s is not None else link_prefix(n, u) for n, u, s in (one, other)
        }
        assert len(keys) == len({one, other})

    @given(namespaces, names("{}"), names("{}"))
    def test_keys_of_different_kinds_are_different(
        self, namespace: str, name: str, other: str
    ) -> None:
        keys = [
            state_key(namespace, name),
            workload_key(namespace, name),
            link_prefix(namespace, name),
            link_key(namespace, name, other),
            operation_key(namespace, name, other),
        ]
        assert len(set(keys)) == len(keys)

    @given(st.tuples(namespaces, services), st.tuples(namespaces, services))
    @example(("a", "b:state:c"), ("a", "b"))
    def test_different_services_have_different_keys(
        self, one: tuple[str, str], other: tuple[str, str]
    ) -> None:
        for make_key in (state_key, workload_key):
            assert (make_key(*one) == make_key(*other)) == (one == other)


class TestNames:
    @given(namespaces, uids, services)
    def test_whatever_the_rules_allow_is_accepted(
        self, namespace: str, uid: str, service: str
    ) -> None:
        check_link_names(namespace, uid, service)
        check_service_names(namespace, service)

    @pytest.mark.parametrize("name", ["a" * MAX_NAME_BYTES, "ü" * (MAX_NAME_BYTES // 2)])
    def test_512_bytes_are_accepted(self, name: str) -> None:
        check_link_names(name, name, name)

    @pytest.mark.parametrize("name", ["a" * 513, "ü" * 256 + "a", "\U0001f600" * 129])
    def test_more_bytes_are_refused_and_counted(self, name: str) -> None:
        with pytest.raises(
            InvalidArgument, match=f"uid must be at most 512 bytes.* is {len(name.encode())}"
        ):
            check_link_names("ns", name, "chat")

    @pytest.mark.parametrize(
        "character", [*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), "{", "}"]
    )
    def test_what_would_break_a_key_is_refused(self, character: str) -> None:
        for position in range(3):
            arguments = ["ns", "ada", "chat"]
            arguments[position] += character
            with pytest.raises(InvalidArgument, match="must not contain"):
                check_link_names(*arguments)

    def test_a_colon_is_refused_in_a_namespace_only(self) -> None:
        check_link_names("ns", "a:b", "c:d")
        with pytest.raises(InvalidArgument, match=r"namespace must not contain ':'.*'n:s'"):
            check_link_names("n:s", "ada", "chat")

    def test_a_subclass_of_str_is_a_name(self) -> None:
        class Name(str):
            __slots__ = ()

        check_link_names(Name("ns"), Name("ada"), Name("chat"))
        with pytest.raises(InvalidArgument):
            check_link_names(Name("ns"), Name("a}"), Name("chat"))

    def test_an_int_that_equals_a_name_seen_before_is_still_no_name(self) -> None:
        class Cunning:
            """Equal to a name, and with its hash: a memo of checked names must not take it for one."""

            def __eq__(self, other: object) -> bool:
                return other == "ns"

            def __hash__(self) -> int:
                return hash("ns")

        check_service_names("ns", "chat")
        with pytest.raises(InvalidArgument, match="namespace must be a str, not Cunning"):
            check_service_names(Cunning(), "chat")  # type: ignore[arg-type]


class TestNumbers:
    @pytest.mark.parametrize("pod", [0, 1, MAX_POD])
    def test_pods_reach_from_0_to_the_largest_int64(self, pod: int) -> None:
        check_pod(pod)

    @pytest.mark.parametrize("seconds", [PERSIST_FOREVER, 1, MAX_PERSIST_SECONDS])
    def test_persist_seconds_reach_as_far_as_scripts_count_exactly(self, seconds: int) -> None:
        check_persist_seconds(seconds)

    @given(st.integers() | st.floats() | st.text() | st.booleans() | st.none())
    def test_anything_else_is_refused_with_the_rule(self, value: object) -> None:
        checks: list[tuple[Callable[[int], None], bool]] = [
            (check_pod, type(value) is int and 0 <= value <= MAX_POD),
            (
                check_persist_seconds,
                type(value) is int and (value == -1 or 0 < value <= MAX_PERSIST_SECONDS),
            ),
        ]
        for check, fine in checks:
            if fine:
                check(value)  # type: ignore[arg-type]
            else:
                with pytest.raises(InvalidArgument, match=r"must be .*not"):
                    check(value)  # type: ignore[arg-type]

    def test_a_number_of_a_million_digits_has_a_short_text(self) -> None:
        with pytest.raises(InvalidArgument) as caught:
            check_pod(10**1_000_000)
        assert len(str(caught.value)) < 200
