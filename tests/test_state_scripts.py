"""The scripts that store and read the states of pods, on real servers."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis.exceptions
from support.program import StateProgram, run_script

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

    @pytest.mark.parametrize("max_bytes", ["", "-1", "x", "1" * 16])
    def test_a_wrong_number_of_bytes_is_refused(self, states: StateProgram, max_bytes: str) -> None:
        with pytest.raises(redis.exceptions.ResponseError, match=r"^SFARG max_bytes"):
            run_script(states.client, "statefulGetService", [states.key], 0, max_bytes)

    def test_states_that_are_too_large_come_without_what_is_the_applications(
        self, states: StateProgram
    ) -> None:
        at = states.server_ms() - 5000
        fields = {
            "status": "Running",
            "load": 0.5,
            "at": at,
            "by": "a",
            "lease": 6000,
            "capacity": 2,
        }
        large = json.dumps({**fields, "map": "x" * 5000, "list": ["x" * 5000]})
        small = json.dumps({**fields, "map": "x"})
        stored: dict[Field, Field] = {"0": large, "1": small, "2": "x" * 5000}
        stored.update({"~gap": "0 0 0", "x" * 30: "x"})
        states.client.hset(states.key, mapping=stored)
        whole = run_script(states.client, "statefulGetService", [states.key], 4, 30_000)
        assert len(whole) == 1 + 3 * 4
        _, *rest = run_script(states.client, "statefulGetService", [states.key], 4, 4_000)
        found = {pod: (state, int(age)) for pod, state, age in zip(*[iter(rest)] * 3, strict=True)}
        assert set(found) == {"0", "1", "2"}
        assert json.loads(found["0"][0]) == fields
        assert found["1"][0] == small
        assert found["2"] == ("x" * 1000, -1)
        assert 5000 <= found["0"][1] < 7000

    @pytest.mark.parametrize(("max_bytes", "refused"), [(1000, True), (1500, False), (0, False)])
    def test_more_than_four_times_as_many_bytes_are_an_error(
        self, states: StateProgram, max_bytes: int, refused: bool
    ) -> None:
        states.client.hset(states.key, mapping={"0": "x" * 2500, "1": "x" * 2500})
        if refused:
            with pytest.raises(redis.exceptions.ResponseError, match=r"^SFTOOLARGE "):
                run_script(states.client, "statefulGetService", [states.key], 0, max_bytes)
        else:
            reply = run_script(states.client, "statefulGetService", [states.key], 0, max_bytes)
            assert len(reply) == 1 + 3 * 2


class Lives:
    """One pod's lives, as agents write them."""

    def __init__(self, states: StateProgram) -> None:
        self.states = states
        self.up: dict[str, int] = {}

    def write(self, life: str, mode: str, status: str = "Running", pod: int = 0) -> list[Any]:
        fields: dict[str, object] = {"status": status, "by": life}
        if mode == "beat" and life in self.up:
            fields["up"] = self.up[life]
        args: list[str | int] = [pod, json.dumps(fields), 1, 0, life, mode]
        reply = run_script(self.states.client, "statefulSetState", [self.states.key], *args)
        if mode == "start":
            self.up[life] = int(reply[3])
        return reply

    def stored(self) -> tuple[str, str]:
        state = json.loads(self.states.fields()["0"])
        return state["by"], state["status"]


@pytest.fixture
def lives(states: StateProgram) -> Lives:
    return Lives(states)


class TestLives:
    """One pod id belongs to the life that started last."""

    def test_a_start_says_when_it_was(self, lives: Lives) -> None:
        server_ms, previous, outcome, up = lives.write("a", "start")
        assert (previous, outcome, up) == (None, "stored", server_ms)
        assert json.loads(lives.states.fields()["0"])["up"] == int(up)

    def test_its_later_states_are_its_own(self, lives: Lives) -> None:
        lives.write("a", "start")
        for status in ("Running", "Draining", "Stopped"):
            assert lives.write("a", "beat", status)[2:] == ["stored", str(lives.up["a"])]
            assert lives.stored() == ("a", status)

    def test_the_newest_start_has_the_id(self, lives: Lives) -> None:
        lives.write("a", "start")
        assert lives.write("b", "start")[2] == "stored"
        assert lives.up["b"] > lives.up["a"]
        assert lives.stored() == ("b", "Running")

    @pytest.mark.parametrize("status", ["Running", "Draining", "Stopped"])
    def test_an_older_one_never_writes_over_it_and_is_told_who_has_it(
        self, lives: Lives, status: str
    ) -> None:
        lives.write("a", "start")
        lives.write("b", "start")
        before = lives.states.fields()
        _, previous, outcome, up = lives.write("a", "beat", status)
        assert (outcome, up) == ("superseded", str(lives.up["b"]))
        assert json.loads(previous)["by"] == "b"
        assert lives.states.fields() == before

    def test_one_that_ended_in_order_is_not_followed_by_an_older_one(self, lives: Lives) -> None:
        lives.write("a", "start")
        lives.write("b", "start")
        lives.write("b", "beat", "Stopped")
        assert lives.write("a", "beat")[2] == "superseded"
        assert lives.stored() == ("b", "Stopped")

    def test_after_the_states_were_lost_the_newest_still_wins(self, lives: Lives) -> None:
        lives.write("a", "start")
        lives.write("b", "start")
        lives.states.client.delete(lives.states.key)
        assert lives.write("a", "beat")[2] == "stored"
        assert lives.write("b", "beat")[2] == "stored"
        assert lives.write("a", "beat")[2] == "superseded"

    def test_a_start_that_is_sent_twice_has_started_once(self, lives: Lives) -> None:
        first = lives.write("a", "start")
        second = lives.write("a", "start")
        assert (second[2], second[3]) == ("stored", first[3])

    def test_a_start_that_arrives_again_after_a_newer_one_takes_nothing_back(
        self, lives: Lives
    ) -> None:
        for life in "abcd":
            lives.write(life, "start")
            lives.write(life, "beat")
        before = lives.states.fields()
        for life in "abc":
            _, previous, outcome, up = lives.write(life, "start")
            assert (outcome, up) == ("superseded", str(lives.up["d"]))
            assert json.loads(previous)["by"] == "d"
        assert lives.states.fields() == before
        assert lives.write("d", "beat")[2] == "stored"

    def test_four_lives_before_it_are_remembered(self, lives: Lives) -> None:
        for number in range(40):
            lives.write(f"life{number}", "start")
            lives.write(f"life{number}", "beat")
        state = json.loads(lives.states.fields()["0"])
        assert state["before"].split() == ["life38", "life37", "life36", "life35"]
        assert state["up"] == lives.up["life39"]

    def test_starts_are_ordered_though_the_clock_went_back(self, lives: Lives) -> None:
        lives.write("a", "start")
        ahead = lives.states.server_ms() + 60_000
        lives.states.client.hset(lives.states.key, "0", json.dumps({"by": "a", "up": ahead}))
        assert int(lives.write("b", "start")[3]) == ahead + 1

    @pytest.mark.parametrize(
        "stored", ["Draining", "", "{", "[]", '{"drain":true}', '{"by":"old"}', '{"by":5,"up":"x"}']
    )
    def test_what_no_life_wrote_is_written_over(self, lives: Lives, stored: str) -> None:
        lives.write("a", "start")
        lives.states.client.hset(lives.states.key, "0", stored)
        assert lives.write("a", "beat")[1:3] == [stored, "stored"]

    @pytest.mark.parametrize(
        ("state", "life", "mode"),
        [
            ('{"by":"b"}', "a", "beat"),
            ("{}", "a", "start"),
            ("Running", "a", "beat"),
            ('{"by":"a"}', "a", "stop"),
            ('{"by":"a","up":"x"}', "a", "start"),
        ],
    )
    def test_a_wrong_argument_is_refused(
        self, states: StateProgram, state: str, life: str, mode: str
    ) -> None:
        with pytest.raises(redis.exceptions.ResponseError, match=r"^SFARG "):
            states.set(0, state, 0, 0, life, mode)
        assert states.fields() == {}


class TestGaps:
    """When no pod could store a heartbeat, their silence is counted from the end of that time."""

    GAP_MS = 3000

    def beat(self, states: StateProgram, pod: int) -> None:
        states.set(pod, "{}", 1, 0, "", "beat", self.GAP_MS)

    def move_back(self, states: StateProgram, seconds: float) -> None:
        """As if all that is stored had been stored so much earlier, or the clock had jumped ahead."""
        for field, value in states.fields().items():
            if field == "~gap":
                moved = " ".join(str(max(int(n) - int(seconds * 1000), 0)) for n in value.split())
            else:
                state = json.loads(value)
                moved = json.dumps({**state, "at": state["at"] - int(seconds * 1000)})
            states.client.hset(states.key, field, moved)

    def ages(self, states: StateProgram) -> dict[str, int]:
        ages = {pod: round(age / 1000) for pod, (_, age) in states.get_all().items()}
        assert ages == {pod: round(states.get(int(pod))[2] / 1000) for pod in ages}
        return ages

    def test_while_all_were_silent_nobody_has_grown_older(self, states: StateProgram) -> None:
        for pod in range(3):
            self.beat(states, pod)
        self.move_back(states, 20)
        assert self.ages(states) == {"0": 20, "1": 20, "2": 20}
        self.beat(states, 1)
        assert self.ages(states) == {"0": 0, "1": 0, "2": 0}
        self.move_back(states, 2)
        self.beat(states, 1)
        assert self.ages(states) == {"0": 2, "1": 0, "2": 2}

    def test_one_that_was_silent_before_stays_so(self, states: StateProgram) -> None:
        self.beat(states, 0)
        self.move_back(states, 2)
        self.beat(states, 1)
        self.move_back(states, 2)
        self.beat(states, 1)
        self.move_back(states, 20)
        self.beat(states, 1)
        assert self.ages(states) == {"0": 4, "1": 0}

    def test_a_pod_that_is_silent_alone_makes_no_gap(self, states: StateProgram) -> None:
        self.beat(states, 0)
        for _ in range(5):
            self.move_back(states, 2)
            self.beat(states, 1)
        assert self.ages(states) == {"0": 10, "1": 0}

    def test_heartbeats_of_programs_that_mark_none_count(self, states: StateProgram) -> None:
        self.beat(states, 0)
        self.move_back(states, 20)
        states.client.hset(states.key, "1", f"1-{states.server_ms() - 1000}-1")
        self.beat(states, 2)
        assert self.ages(states) == {"0": 20, "1": 1, "2": 0}

    def test_two_in_a_row_are_one(self, states: StateProgram) -> None:
        for pod in range(2):
            self.beat(states, pod)
        self.move_back(states, 20)
        self.beat(states, 1)
        self.move_back(states, 1)
        self.beat(states, 1)
        self.move_back(states, 20)
        self.beat(states, 1)
        assert self.ages(states) == {"0": 0, "1": 0}

    def test_one_marked_by_a_clock_that_was_ahead_is_forgotten(self, states: StateProgram) -> None:
        self.beat(states, 0)
        now = states.server_ms()
        states.client.hset(states.key, "~gap", f"{now + 60_000} {now} {now + 50_000}")
        self.beat(states, 1)
        assert states.fields()["~gap"].split()[1:] == ["0", "0"]

    @pytest.mark.parametrize("note", ["", "x", "1 2", "1 2 3 4", "-1 2 3", "nan nan nan"])
    def test_whatever_else_stands_there_is_no_gap(self, states: StateProgram, note: str) -> None:
        self.beat(states, 0)
        states.client.hset(states.key, "~gap", note)
        assert self.ages(states) == {"0": 0}
        self.beat(states, 0)
        assert states.fields()["~gap"].split()[1:] == ["0", "0"]

    def test_nobody_takes_it_for_a_pod(self, states: StateProgram) -> None:
        self.beat(states, 0)
        assert set(states.get_all()) == {"0"}
        assert set(states.fields()) == {"0", "~gap"}
        # Nor does it count as one.
        assert len(run_script(states.client, "statefulGetService", [states.key], 1)) == 4

    @pytest.mark.parametrize("gap_ms", ["", "-1", "x", "1" * 16])
    def test_a_wrong_time_is_refused(self, states: StateProgram, gap_ms: str) -> None:
        with pytest.raises(redis.exceptions.ResponseError, match=r"^SFARG gap_ms"):
            states.set(0, "{}", 1, 0, "", "beat", gap_ms)
        assert states.fields() == {}
