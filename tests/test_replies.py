"""Raw replies into values: what each may be, and the error that names the key and hides the uid."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sfroute import CorruptReply
from sfroute._contract.error_replies import read_failure
from sfroute._contract.keys import MAX_POD, link_key, link_prefix, state_key
from sfroute._contract.replies import (
    corrupt,
    first,
    links,
    masked_key,
    owner,
    pod,
    pod_states,
    refused,
    script_pod,
    service_pods,
    text,
)

UID = "grace.hopper@example.org"
KEY = link_key("ns", UID, "chat")

anything = st.recursive(
    st.none() | st.integers() | st.binary(max_size=25) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.binary(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


class TestPod:
    @given(st.integers(0, MAX_POD))
    @example(0)
    @example(MAX_POD)
    def test_every_pod_id_is_read(self, number: int) -> None:
        assert pod(str(number).encode(), KEY) == number

    def test_nothing_is_none(self) -> None:
        assert pod(None, KEY) is None

    def test_minus_1_of_a_script_is_none(self) -> None:
        assert script_pod(b"-1", KEY) is None
        assert script_pod(b"0", KEY) == 0

    @pytest.mark.parametrize(
        "raw",
        [
            *(b"", b"abc", b"-1", b"+1", b" 1", b"1 ", b"1.0", b"1e3", b"0x1", b"1" * 5000),
            *(b"9223372036854775808", "\u0663".encode(), "\u00b2".encode()),
            *("3", 3, True, [b"3"], {b"3": b"3"}),
        ],
    )
    def test_anything_else_is_corrupt(self, raw: object) -> None:
        with pytest.raises(CorruptReply, match="not a pod id"):
            pod(raw, KEY)


class TestOwner:
    def test_it_is_the_first_element(self) -> None:
        assert owner([b"0", b"3"], KEY) == 0

    @pytest.mark.parametrize("reply", [None, [], b"3", 3, [None], [b"-1"], [b"x"], [[b"3"]]])
    def test_a_reply_without_one_is_corrupt(self, reply: object) -> None:
        with pytest.raises(CorruptReply):
            owner(reply, KEY)

    @pytest.mark.parametrize(
        ("reply", "element"), [([], None), (None, None), (b"ab", None), ([1], 1)]
    )
    def test_first(self, reply: object, element: object) -> None:
        assert first(reply) == element


class TestLinks:
    @pytest.mark.parametrize(
        "raw", [{b"chat": b"0", b"game": b"7"}, [b"chat", b"0", b"game", b"7"]]
    )
    def test_both_protocols_forms_of_a_hash_are_read(self, raw: object) -> None:
        assert links(raw, KEY) == {"chat": 0, "game": 7}

    @pytest.mark.parametrize(
        "raw",
        [{b"chat": b"x"}, {b"chat": None}, [b"chat"], b"chat", None, 3, "ab", {b"chat": b"-1"}],
    )
    def test_anything_else_is_corrupt(self, raw: object) -> None:
        with pytest.raises(CorruptReply):
            links(raw, KEY)


class TestStates:
    def test_fields_that_are_no_pod_ids_are_skipped(self) -> None:
        raw = {b"0": b"Running", b"x": b"1", b"-1": b"1", b"1.5": b"1", b"": b"", b"9" * 19: b"1"}
        assert pod_states(raw, KEY) == {0: "Running"}

    def test_ages_are_in_seconds_and_none_without_a_stamp(self) -> None:
        raw = [b"1700000000000", b"0", b"Running", b"-1", b"1", b"{}", b"1500", b"x", b"{}", b"1"]
        assert service_pods(raw, KEY) == [(0, "Running", None), (1, "{}", 1.5)]

    @pytest.mark.parametrize("raw", [None, b"", [], [b"1", b"2"], {b"a": b"b"}])
    def test_a_reply_of_another_shape_is_corrupt(self, raw: object) -> None:
        with pytest.raises(CorruptReply):
            service_pods(raw, KEY)

    def test_fields_beyond_int64_are_skipped(self) -> None:
        raw = [b"1", str(MAX_POD + 1).encode(), b"Running", b"-1"]
        assert service_pods(raw, KEY) == []


class TestText:
    def test_it_is_utf8(self) -> None:
        assert text("grün".encode(), KEY) == "grün"

    def test_other_bytes_are_kept_as_escapes(self) -> None:
        assert text(b"a\xffb", KEY) == "a\\xffb"

    @pytest.mark.parametrize("raw", [None, 1, "a", [b"a"]])
    def test_anything_else_is_corrupt(self, raw: object) -> None:
        with pytest.raises(CorruptReply):
            text(raw, KEY)


class TestErrors:
    @pytest.mark.parametrize(
        "read", [pod, script_pod, owner, links, pod_states, text, service_pods]
    )
    @given(raw=anything)
    def test_a_reply_is_a_value_or_corrupt_and_nothing_else(
        self, read: Callable[[object, str], object], raw: object
    ) -> None:
        corrupted: CorruptReply | None = None
        try:
            read(raw, KEY)
        except CorruptReply as error:
            corrupted = error
        if corrupted is not None:
            assert corrupted.key == KEY
            assert UID not in f"{corrupted} {corrupted!r}"

    @pytest.mark.parametrize(
        ("key", "shown"),
        [
            (KEY, "sf:{ns:lk:***}chat"),
            (link_prefix("ns", UID), "sf:{ns:lk:***}"),
            (state_key("ns", "chat"), "sf:{ns:state:chat}"),
            (f"sf:op:{{ns:lk:{UID}}}:t1", "sf:op:***"),
            (f"sf:{{ns:lk:{UID}", "a key outside the contract"),
            (f"mine:{UID}", "a key outside the contract"),
            (f"sf:{{ns:lk:{UID}\udcff}}chat", "sf:{ns:lk:***}chat"),
        ],
    )
    def test_a_masked_key_shows_everything_but_the_uid(self, key: str, shown: str) -> None:
        assert masked_key(key) == shown

    def test_the_whole_key_is_in_the_errors_key(self) -> None:
        error = corrupt(KEY, "'abc'")
        assert error.key == KEY
        assert str(error).startswith("sf:{ns:lk:***}chat holds 'abc'; repair or delete the key")
        assert not error.retryable

    @pytest.mark.parametrize(
        ("message", "advice"),
        [
            (f"NOPERM User x has no permissions to access {UID}", "permissions"),
            ("NOAUTH Authentication required.", "password"),
            ("MOVED 1 127.0.0.1:7000", "redis\\+cluster://"),
            (f"ERR odd {UID}", "log"),
        ],
    )
    def test_a_refused_command_says_what_to_do_without_the_servers_text(
        self, message: str, advice: str
    ) -> None:
        error = refused(read_failure(message), "set_linked_pod")
        assert error.operation == "set_linked_pod"
        assert UID not in str(error)
        with pytest.raises(type(error), match=f"set_linked_pod: .*{advice}"):
            raise error
