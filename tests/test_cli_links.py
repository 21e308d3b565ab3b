"""``sfroute link``, ``state`` and ``workload``."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest
from support.command import COMMAND, Operator, environment

from sfroute import PodAgent, Router
from sfroute.embedded import LocalCluster


@pytest.fixture
def operator(sfroute_cluster: LocalCluster, sfroute_namespace: str) -> Iterator[Operator]:
    with Router.from_url(sfroute_cluster.url) as router:
        yield Operator(router, sfroute_cluster.url, sfroute_namespace)


# --- get


def test_get_writes_the_pod_and_the_kind_of_the_link(operator: Operator) -> None:
    operator.link("ada", 0)
    operator.link("grace", 2, 50)
    assert operator("link", "get", "ada") == (0, "0\tpersistent\n", "")
    assert operator("link", "get", "grace") == (0, "2\ttemporary\n", "")
    assert operator("link", "get", "ada", "--json").json == {
        "uid": "ada",
        "service": "chat",
        "pod": 0,
        "persistent": True,
    }


def test_get_of_a_uid_without_a_link_exits_with_3_and_places_nobody(operator: Operator) -> None:
    operator.report(1)
    where = f"of service 'chat' in namespace '{operator.namespace}'"
    assert operator("link", "get", "ada") == (3, "", f"sfroute: the uid has no link {where}\n")
    done = operator("link", "get", "ada", "--json")
    assert (done.code, done.json["pod"], done.json["persistent"]) == (3, None, None)
    assert operator.pod_of("ada") is None


# --- set, try-set, set-if-absent


def test_set_tells_who_had_the_uid_before(operator: Operator) -> None:
    assert operator("link", "set", "ada", "0") == (0, "pod 0; before: none\n", "")
    assert operator("link", "set", "ada", "2") == (0, "pod 2; before: pod 0\n", "")
    done = operator("link", "set", "ada", "1", "--persist-seconds", "50", "--json")
    assert done.json == {"uid": "ada", "service": "chat", "pod": 1, "previous": 2}
    assert operator("link", "get", "ada").out == "1\ttemporary\n"


def test_try_set_is_refused_by_another_pods_persistent_link(operator: Operator) -> None:
    assert operator("link", "try-set", "ada", "1") == (0, "pod 1\n", "")
    refused = operator("link", "try-set", "ada", "2")
    assert refused == (3, "refused: pod 1 has the uid persistently\n", "")
    done = operator("link", "try-set", "ada", "2", "--json")
    assert (done.code, done.json["success"], done.json["pod"]) == (3, False, 1)


def test_set_if_absent_leaves_a_link_that_is_there(operator: Operator) -> None:
    assert operator("link", "set-if-absent", "ada", "1", "--persist-seconds", "50").out == "pod 1\n"
    done = operator("link", "set-if-absent", "ada", "2", "--refresh", "--persist-seconds", "900")
    assert done == (0, "pod 1, which had the uid already\n", "")
    assert operator("link", "set-if-absent", "ada", "2", "--json").json["pod"] == 1


# --- remove


def test_remove_deletes_the_link_or_keeps_it_for_a_while(operator: Operator) -> None:
    operator.link("ada", 1)
    done = operator("link", "remove", "ada", "--persist-seconds", "30")
    assert done == (0, "kept for 30 more seconds\n", "")
    assert operator("link", "get", "ada").out == "1\ttemporary\n"
    assert operator("link", "remove", "ada") == (0, "removed\n", "")
    assert operator("link", "remove", "ada") == (3, "", "sfroute: the uid has no link\n")


def test_remove_with_a_pod_removes_only_that_pods_link(operator: Operator) -> None:
    operator.link("ada", 1)
    refused = operator("link", "remove", "ada", "--pod", "2")
    assert refused == (3, "", "sfroute: the uid has no link to pod 2\n")
    assert operator.pod_of("ada") == 1
    done = operator("link", "remove", "ada", "--pod", "1", "--json")
    assert done.json == {"uid": "ada", "service": "chat", "removed": True}
    assert operator.pod_of("ada") is None


# --- services, batch


def test_services_lists_the_persistent_links_of_a_uid(operator: Operator) -> None:
    operator.link("ada", 1)
    operator.router.set_linked_pod(operator.namespace, "ada", "game", 0)
    operator.router.set_linked_pod(operator.namespace, "ada", "cart", 3, 50)
    assert operator("link", "services", "ada") == (0, "chat\t1\ngame\t0\n", "")
    done = operator("link", "services", "ada", "--json")
    assert done.json == {"uid": "ada", "services": {"chat": 1, "game": 0}}
    nobody = operator("link", "services", "nobody")
    assert nobody == (3, "", "sfroute: the uid has no persistent link\n")


def test_batch_answers_in_order_and_marks_who_has_no_link(operator: Operator) -> None:
    operator.link("ada", 0)
    operator.link("grace", 2)
    done = operator("link", "batch", "grace", "nobody", "ada", "grace")
    assert done == (0, "grace\t2\nnobody\t-\nada\t0\ngrace\t2\n", "")
    assert operator("link", "batch", "--json", "nobody").json == {"uid": "nobody", "pod": None}


def test_batch_reads_uids_from_standard_input(operator: Operator) -> None:
    uids = [f"user-{number}" for number in range(700)]
    for uid in uids[::7]:
        operator.link(uid, 1)
    done = subprocess.run(
        [*COMMAND, "link", "batch"],
        input="\n".join([*uids, "bad}uid"]),
        capture_output=True,
        text=True,
        env=environment(**operator.variables),
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"{uid}\t{'-' if number % 7 else 1}" for number, uid in enumerate(uids)
    ]
    assert "line 701: uid must not contain" in done.stderr
    assert "bad}uid" not in done.stderr


# --- what is wrong


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["link", "get", "a}b"], "uid must not contain"),
        (["link", "get"], "Missing argument"),
        (["link", "set", "ada", "first"], "a pod's id is a number from 0"),
        (["link", "set", "ada", "1", "--persist-seconds", "0"], "persist_seconds must be"),
        (["link", "set", "ada", "99999999999999999999"], "pod must be from 0 to"),
        (["link", "remove", "ada", "--pod", "-2"], "--pod"),
        (["link", "services", ""], "uid must not be empty"),
        (["link", "batch", "--service", "a{b", "ada"], "service must not contain"),
        (["state", "get", "--namespace", "a:b"], "namespace must not contain"),
        (["state", "set", "0"], "Missing argument"),
        (["workload", "get", "a{b"], "service must not contain"),
        (["link", "nonsense"], "No such command"),
    ],
)
def test_a_mistake_exits_with_2_and_is_told_in_a_sentence(
    operator: Operator, arguments: list[str], complaint: str
) -> None:
    done = operator(*arguments)
    assert (done.code, done.out) == (2, "")
    assert complaint in done.err
    assert "Traceback" not in done.err
    assert "a}b" not in done.err


def test_a_key_that_holds_no_link_is_told_without_the_uid(
    operator: Operator, sfroute_cluster: LocalCluster
) -> None:
    key = f"sf:{{{operator.namespace}:lk:secret-ada}}chat"
    sfroute_cluster.execute(sfroute_cluster.primary_of(key), "SET", key, "soon")
    done = operator("link", "get", "secret-ada")
    assert (done.code, done.out) == (1, "")
    assert "not a pod id" in done.err
    assert "secret-ada" not in done.err


# --- state, workload


def test_state_writes_and_reads_the_strings_as_they_are(operator: Operator) -> None:
    assert operator("state", "set", "0", "Running", "--force") == (0, "", "")
    state = '{"status":"Running","load":0.5}'
    assert operator("state", "set", "3", state, "--json", "--force").json == {
        "pod": 3,
        "state": state,
    }
    assert operator("state", "get") == (0, f"0\tRunning\n3\t{state}\n", "")
    assert operator("state", "get", "3").out == f"3\t{state}\n"
    assert operator("state", "get", "--json").json_lines == [
        {"pod": 0, "state": "Running"},
        {"pod": 3, "state": state},
    ]


def test_state_of_nobody_exits_with_3(operator: Operator) -> None:
    done = operator("state", "get")
    assert (done.code, done.out) == (3, "")
    where = f"'chat' in namespace '{operator.namespace}'"
    assert done.err.startswith(f"sfroute: no pod of {where} has reported a state\n")
    operator.report(0)
    done = operator("state", "get", "7")
    assert done == (3, "", "sfroute: pod 7 of 'chat' has reported no state\n")


def test_a_pod_that_never_reported_gets_no_users_by_mistake(operator: Operator) -> None:
    operator.report(1)
    done = operator("state", "set", "22", "Running")
    assert done.code == 2
    assert "Pod 22 of 'chat' has never reported" in done.err
    assert operator("state", "set", "22", "Stopped").code == 0  # takes nobody
    assert operator("state", "set", "23", "Running", "--force").code == 0
    assert operator("state", "set", "1", "Running").code == 0
    assert sorted(operator.router.get_service_state(operator.namespace, "chat")) == [1, 22, 23]


def test_a_state_can_be_removed(operator: Operator) -> None:
    operator.report(1)
    operator.report(22)
    operator.link("ada", 22)
    assert operator("state", "remove", "22") == (0, "pod 22: the state is removed\n", "")
    assert list(operator.router.get_service_state(operator.namespace, "chat")) == [1]
    assert operator.pod_of("ada") == 22
    done = operator("state", "remove", "22")
    assert done == (3, "", "sfroute: pod 22 of 'chat' has reported no state\n")
    assert operator("state", "remove", "1", "--json").json == {"pod": 1, "removed": True}


def test_the_state_of_a_living_pod_is_not_removed_unasked(operator: Operator) -> None:
    with PodAgent(operator.router, operator.namespace, "chat", 4):
        done = operator("state", "remove", "4")
        assert done.code == 2
        assert "Pod 4 of 'chat' sent a heartbeat 0." in done.err
        assert 4 in operator.router.get_service_state(operator.namespace, "chat")


def test_a_pods_name_is_no_id_and_the_error_says_which(operator: Operator) -> None:
    for command in (
        ("state", "set", "chat-3", "Running"),
        ("drain", "chat-3"),
        ("evacuate", "chat-3"),
    ):
        done = operator(*command)
        assert done.code == 2
        assert "a pod's id is a number from 0, such as 3 for 'chat-3'" in " ".join(done.err.split())
    assert operator("state", "get", "-1").code == 2
    assert "number from 0" in operator("link", "remove", "ada", "--pod", "\x1b[2Jx").err


def test_an_unreadable_state_is_shown_as_it_is(operator: Operator) -> None:
    operator.report(6, "Runing\x1b[2J" + "x" * 100)
    out = operator("pods").out
    assert r"no: its state 'Runing\x1b[2J" in out
    assert "x" * 40 not in out


def test_what_others_wrote_cannot_command_the_terminal(operator: Operator) -> None:
    operator.report(0, "\x1b[2J\x9b31mRunning\ttab\n")
    assert operator("state", "get").out == "0\t\\x1b[2J\\x9b31mRunning\\x09tab\\x0a\n"
    done = operator("state", "get", "--json")
    assert "\x9b" not in done.out
    assert json.loads(done.out)["state"] == "\x1b[2J\x9b31mRunning\ttab\n"
    assert "\x1b" not in operator("pods").out


def test_workload_writes_and_reads_one_or_many(operator: Operator) -> None:
    assert operator("workload", "get").code == 3
    assert operator("workload", "set", "Busy") == (0, "", "")
    assert operator("workload", "get") == (0, "Busy\n", "")
    done = operator("workload", "set", "Calm", "--service", "game", "--json")
    assert done.json == {"service": "game", "state": "Calm"}
    done = operator("workload", "get", "game", "cart", "chat")
    assert done == (0, "game\tCalm\nchat\tBusy\n", "sfroute: 'cart' has no workload state\n")
    assert operator("workload", "get", "game", "cart", "--json").json_lines == [
        {"service": "game", "state": "Calm"},
        {"service": "cart", "state": None},
    ]
