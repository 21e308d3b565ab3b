"""The script files: complete, documented in one form, found by the package, and obeying the rules of a cluster."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import catalogue
import pytest
import redis
from support.documents import block
from support.program import SCRIPT_FOLDER, LinkProgram, in_threads, owner_of, run_script, source_of
from support.rows import Script

from sfroute._contract import scripts
from sfroute._contract.keys import (
    claim_key,
    link_key,
    link_prefix,
    operation_key,
    slot_of,
    state_key,
)
from sfroute._contract.scripts import SCRIPTS, get_script, script_named
from sfroute.errors import ConfigError, InvalidArgument

HEADER_LINE = re.compile(
    r"""--\ (?: Access:\ (?:read|write)
          | (?:KEYS|ARGV)\[(?:\d+|\d*\.\.\.)\]\ [a-z_]+(?:\ \([^)]+\))?:\ .+
          | Reply\ \{[^}]+\}:\ .+
          | Error\ [A-Z]+:\ .+
          | \ \ \S.+ )$""",
    re.VERBOSE,
)


class TestHeader:
    @pytest.mark.parametrize("script", SCRIPTS)
    def test_it_has_the_one_form(self, script: str) -> None:
        header, code = source_of(script).split("\n\n", 1)
        lines = header.splitlines()
        assert lines[0] == f"-- {script}"
        start = next(i for i, line in enumerate(lines) if line.startswith("-- Access:"))
        contract = lines[start:]
        for line in contract:
            assert HEADER_LINE.match(line), line
        words = [line.split(" ")[1].partition("[")[0].rstrip(":") for line in contract]
        words = [word for word in words if word]
        assert words == sorted(words, key=["Access", "KEYS", "ARGV", "Reply", "Error"].index)
        assert {"Access", "KEYS", "Reply", "Error"} <= set(words)
        # What the code answers with is what the header lists.
        listed = set(re.findall(r"^-- Error ([A-Z]+):", header, re.MULTILINE))
        assert set(re.findall(r"'(SF[A-Z]+) ", code) + re.findall(r'"(SF[A-Z]+) ', code)) == {
            word for word in listed if word.startswith("SF")
        }

    @pytest.mark.parametrize("script", SCRIPTS)
    def test_its_access_is_what_the_code_does(self, script: str) -> None:
        header, code = source_of(script).split("\n\n", 1)
        commands = set(re.findall(r"\bp?call\('([A-Z]+)'", code))
        only_reads = commands <= {"GET", "PTTL", "HGET", "HGETALL", "HEXISTS", "HLEN", "TIME"}
        assert f"-- Access: {'read' if only_reads else 'write'}" in header.splitlines()
        assert SCRIPTS[script].read_only == only_reads

    @pytest.mark.parametrize("script", SCRIPTS)
    def test_no_shebang_which_redis_6_does_not_know(self, script: str) -> None:
        assert not source_of(script).startswith("#!")

    def test_the_table_of_the_readme_is_complete(self) -> None:
        readme = (SCRIPT_FOLDER / "README.md").read_text()
        assert set(re.findall(r"^\| `(stateful\w+)` \|", readme, re.MULTILINE)) == set(SCRIPTS)


class TestLoader:
    def test_it_finds_every_file(self) -> None:
        assert {f"{name}.lua" for name in SCRIPTS} == {p.name for p in SCRIPT_FOLDER.glob("*.lua")}
        for name, script in SCRIPTS.items():
            assert script.name == name
            assert script.source == (SCRIPT_FOLDER / f"{name}.lua").read_bytes()

    def test_the_sha_is_the_servers(self, uid: LinkProgram) -> None:
        node = owner_of(uid.client, uid.link)
        for script in SCRIPTS.values():
            assert node.script_load(script.source.decode()) == script.sha

    def test_an_unknown_name_is_told_the_known_ones(self) -> None:
        with pytest.raises(InvalidArgument) as caught:
            script_named("statefulSetlink")
        assert "'statefulSetlink'" in str(caught.value)
        assert all(name in str(caught.value) for name in SCRIPTS)

    def test_a_name_is_found(self) -> None:
        assert script_named("statefulSetLink") is SCRIPTS["statefulSetLink"]
        assert get_script("statefulSetLink") is SCRIPTS["statefulSetLink"]

    def test_the_package_calls_only_scripts_that_are_there(self) -> None:
        package = Path(scripts.__file__).parent.parent
        called = {
            name
            for path in package.rglob("*.py")
            for name in re.findall(r"get_script\(\"(\w+)\"\)", path.read_text(encoding="utf-8"))
        }
        assert len(called) >= 3
        assert called <= set(SCRIPTS)

    def test_the_files_are_read_once_whoever_comes_first(self) -> None:
        fresh = scripts._Scripts()
        seen = in_threads(20, lambda _: fresh["statefulSetLink"])
        assert all(script is seen[0] for script in seen)

    def test_the_packages_own_folder_comes_first(self, tmp_path: Path) -> None:
        shutil.copytree(SCRIPT_FOLDER, tmp_path / "lua_scripts")
        (tmp_path / "lua_scripts" / "statefulSetLink.lua").write_text("return 1")
        loaded = scripts._load((tmp_path / "lua_scripts", SCRIPT_FOLDER))
        assert loaded["statefulSetLink"].source == b"return 1"

    def test_an_installation_without_the_files_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="has no Lua scripts; reinstall sfroute"):
            scripts._load((tmp_path / "a", tmp_path / "b"))

    def test_an_installation_that_lacks_a_file_names_it(self) -> None:
        with pytest.raises(ConfigError, match=r"lacks the Lua script statefulNone\.lua; reinstall"):
            get_script("statefulNone")

    def test_a_file_that_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "statefulGetService.lua").mkdir()
        with pytest.raises(ConfigError, match=r"cannot read .*statefulGetService\.lua"):
            scripts._load((tmp_path, SCRIPT_FOLDER))


class TestKeys:
    def test_all_keys_of_a_link_script_are_in_one_slot(self) -> None:
        for uid in ("ada", "ü", "a:b", "x" * 512):
            keys = [
                link_key("game", uid, "chat"),
                link_key("game", uid, "x.y"),
                link_prefix("game", uid),
            ]
            keys += [claim_key("game", uid, "chat"), operation_key("game", uid, "token")]
            assert len({slot_of(key) for key in keys}) == 1

    def test_states_and_links_are_not(self) -> None:
        assert slot_of(state_key("game", "chat")) != slot_of(link_prefix("game", "ada"))

    @pytest.mark.parametrize("script", catalogue.SCRIPTS, ids=lambda row: row.name)
    def test_a_user_who_may_touch_nothing_else_can_run_it(
        self, uid: LinkProgram, script: Script
    ) -> None:
        keys = script.keys_of(uid)
        node = owner_of(uid.client, keys[0])
        user = f"only-{script.name}"
        node.acl_setuser(user, enabled=True, nopass=True, reset=True, commands=["+@all"], keys=keys)
        address = node.get_connection_kwargs()
        limited = redis.Redis(
            host=address["host"], port=address["port"], username=user, password="any"
        )
        try:
            for persist_seconds in (-1, 3):
                script.before(uid)
                changed: dict[str, Any] = (
                    {"persist_seconds": persist_seconds} if "persist_seconds" in script.args else {}
                )
                uid.client.delete(uid.op)
                run_script(limited, script.name, keys, *script.argv(**changed))
            with pytest.raises(redis.exceptions.NoPermissionError):
                limited.get(f"{uid.hash}other")
        finally:
            limited.close()
            node.acl_deluser(user)


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="redis-cli is not installed")
def test_the_command_of_the_readme_works(uid: LinkProgram) -> None:
    line = block("lua_scripts/README.md", "sh", 0).text.strip()
    command = line.removeprefix("redis-cli ").replace("{game:lk:ada}", uid.hash[3:])
    address = owner_of(uid.client, uid.link).get_connection_kwargs()
    replies = [
        subprocess.run(
            f"redis-cli -h {address['host']} -p {address['port']} {command}",
            shell=True,
            check=True,
            capture_output=True,
            text=True,
            cwd=SCRIPT_FOLDER.parent,
        ).stdout.strip()
        for _ in range(2)
    ]
    assert replies == ["-1", "0"]
