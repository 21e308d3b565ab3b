"""The scripts that store and read the states of pods, on real servers."""

from __future__ import annotations

import json

import pytest
import redis.exceptions
from program import StateProgram, run_script

Field = bytes | bytearray | memoryview | str | int | float


class TestStates:
    def test_a_state_is_stored_as_given(self, states: StateProgram) -> None:
        server_ms, previous = states.set(0, "anything at all")
        assert previous is None
        assert abs(int(server_ms) - states.server_ms()) < 2000
        assert states.set(0, "more")[1] == "anything at all"
        assert states.fields() == {"0": "more"}

    def test_a_stamp_is_the_servers_clock(self, states: StateProgram) -> None:
        server_ms, _ = states.set(0, '{"status":"Running"}', 1)
        assert json.loads(states.fields()["0"]) == {"status": "Running", "at": int(server_ms)}

    @pytest.mark.parametrize(
        "state",
        [
            "{}",
            " { } ",
            '{"at":5}',
            '{"at" : -1.5e3 }',
            '{"a":[],"b":{},"c":null}',
            '{"n":12345678901234567,"f":0.12345678901234567}',
            '{"inner":{"at":1},"at":2,"list":[{"at":3}]}',
            '{"text":"\\"at\\":1","at":2}',
            '{"text":"at","at":2}',
            '{"ü":"é"}',
        ],
    )
    def test_a_stamp_leaves_the_rest_as_it_was(self, states: StateProgram, state: str) -> None:
        server_ms, _ = states.set(0, state, 1)
        assert json.loads(states.fields()["0"]) == {**json.loads(state), "at": int(server_ms)}
        server_ms, _ = states.set(0, states.fields()["0"], 1)
        assert json.loads(states.fields()["0"]) == {**json.loads(state), "at": int(server_ms)}

    @pytest.mark.parametrize(
        "state",
        ["", "Running", "[]", "1", "null", "{", '{"at":"now"}', '{"at":null}', '{"at":0x1f}'],
    )
    def test_only_an_object_can_be_stamped(self, states: StateProgram, state: str) -> None:
        states.set(0, "before")
        with pytest.raises(redis.exceptions.ResponseError, match=r"^SFARG state"):
            states.set(0, state, 1)
        assert states.fields() == {"0": "before"}

    @pytest.mark.parametrize("args", [(), (0,), ("x", "s"), ("-1", "s"), (0, "s", "2")])
    def test_a_wrong_argument_is_refused(
        self, states: StateProgram, args: tuple[str | int, ...]
    ) -> None:
        with pytest.raises(redis.exceptions.ResponseError, match=r"^SFARG "):
            states.set(*args)
        assert states.fields() == {}

    @pytest.mark.parametrize(
        "state",
        [
            '{"status":"Running","at":%d}',
            '{"at":%d.4,"status":"Running"}',
            "12-%d-1",
            "0.75-%d-0",
            "12-%d",
        ],
    )
    def test_the_age_of_a_stamped_state(self, states: StateProgram, state: str) -> None:
        states.set(0, state % (states.server_ms() - 5000))
        assert 5000 <= states.get(0)[2] < 7000

    def test_the_age_of_a_state_stamped_in_seconds(self, states: StateProgram) -> None:
        states.set(0, f"0.5|READY|{states.server_ms() // 1000 - 5}")
        assert 5000 <= states.get(0)[2] < 8000

    def test_a_stamp_in_the_future_has_no_age_yet(self, states: StateProgram) -> None:
        states.set(0, json.dumps({"at": states.server_ms() + 60_000}))
        assert states.get(0)[2] == 0

    @pytest.mark.parametrize(
        "state",
        [
            "",
            "Running",
            "12",
            "a-b-1",
            "12-3-4-5",
            "12-1700000000000-2",
            "x|READY|1700000000",
            "1|BUSY|1700000000",
            "[1]",
            "{",
            "{}",
            '{"at":"1700000000000"}',
            '{"at":null}',
            '{"at":{}}',
            '{"at":1e300}',
            '{"at":-1e300}',
            '{"at":nan}',
            '{"at":inf}',
            '{"a":' * 2000,
            "12-" + "9" * 400,
        ],
    )
    def test_a_state_without_a_stamp_has_no_age(self, states: StateProgram, state: str) -> None:
        states.set(0, state)
        assert states.get(0)[1:] == (state, -1)

    def test_a_pod_without_a_state(self, states: StateProgram) -> None:
        assert states.get(0)[1:] == (None, -1)

    def test_all_pods_of_a_service(self, states: StateProgram) -> None:
        assert states.get_all() == {}
        states.set(0, "Running")
        states.set(12, f"1-{states.server_ms() - 5000}-1")
        states.client.hset(states.key, "not a pod", "{")
        pods = states.get_all()
        assert set(pods) == {"0", "12", "not a pod"}
        assert pods["0"] == ("Running", -1)
        assert pods["not a pod"] == ("{", -1)
        assert 5000 <= pods["12"][1] < 7000

    @pytest.mark.parametrize(
        ("script", "args"),
        [
            ("statefulSetState", (0, "s")),
            ("statefulSetState", (0, "{}", 1)),
            ("statefulGetServicePod", (0,)),
            ("statefulGetService", ()),
        ],
    )
    def test_a_key_of_another_type_is_refused(
        self, states: StateProgram, script: str, args: tuple[str | int, ...]
    ) -> None:
        states.client.set(states.key, "3")
        with pytest.raises(redis.exceptions.ResponseError, match=r"^WRONGTYPE"):
            run_script(states.client, script, [states.key], *args)
        assert states.client.get(states.key) == "3"

    def test_the_states_of_pods_long_gone_are_removed(self, states: StateProgram) -> None:
        old, young = states.server_ms() - 60_000, states.server_ms() - 5000
        others: dict[Field, Field] = {
            "1": f'{{"at":{old}}}',
            "2": f'{{"at":{young}}}',
            "3": "Running",
            "4": f"1-{old}-1",
            "5": "{",
            "6": '{"at":"never"}',
            "x": f'{{"at":{old}}}',
        }
        states.client.hset(states.key, mapping=others)
        states.set(0, "{}", 1, 30_000)
        assert set(states.fields()) == {"0", "2", "3", "4", "5", "6"}

    def test_its_own_state_stays_however_old(self, states: StateProgram) -> None:
        states.set(0, '{"at":1}', 0, 30_000)
        assert states.fields() == {"0": '{"at":1}'}

    @pytest.mark.parametrize("prune", [(), (0,)])
    def test_nothing_is_removed_unasked(self, states: StateProgram, prune: tuple[int, ...]) -> None:
        states.set(1, '{"at":1}')
        states.set(0, "{}", 1, *prune)
        assert set(states.fields()) == {"0", "1"}

    def test_a_hash_too_large_to_search_is_left_alone(self, states: StateProgram) -> None:
        many: dict[Field, Field] = {str(pod): '{"at":1}' for pod in range(10_001)}
        states.client.hset(states.key, mapping=many)
        states.set(0, "{}", 1, 30_000)
        assert len(states.fields()) == 10_001

    @pytest.mark.parametrize("prune_ms", ["", "-1", "1.5", "x", "1" * 16])
    def test_a_wrong_age_is_refused(self, states: StateProgram, prune_ms: str) -> None:
        with pytest.raises(redis.exceptions.ResponseError, match=r"^SFARG prune_ms"):
            states.set(0, "{}", 1, prune_ms)
        assert states.fields() == {}

    @pytest.mark.parametrize("max_fields", [(), ("0",), ("3",)])
    def test_as_many_pods_as_allowed_are_read(
        self, states: StateProgram, max_fields: tuple[str, ...]
    ) -> None:
        states.client.hset(states.key, mapping={"0": "a", "1": "b", "2": "c"})
        reply = run_script(states.client, "statefulGetService", [states.key], *max_fields)
        assert len(reply) == 1 + 3 * 3

    @pytest.mark.parametrize(
        ("max_fields", "first_word"), [("2", "SFTOOMANY"), ("", "SFARG"), ("-1", "SFARG")]
    )
    def test_more_pods_than_allowed_are_an_error(
        self, states: StateProgram, max_fields: str, first_word: str
    ) -> None:
        states.client.hset(states.key, mapping={"0": "a", "1": "b", "2": "c"})
        with pytest.raises(redis.exceptions.ResponseError, match=f"^{first_word} "):
            run_script(states.client, "statefulGetService", [states.key], max_fields)
