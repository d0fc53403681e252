"""featurize/user_keys.py: where keys come from, that none is ever replaced, and that a lake knows its own."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any, ClassVar

import pytest

from featurize.contract import Contract
from featurize.pseudonyms import UserKeys
from featurize.sides import side_table
from featurize.user_keys import KEY_ID, PLAIN, PseudonymSettings, check_key, find_keys, key_id, stamp, stored_key_id
from infra.errors import ConfigError, DataRefused, Logs2RecError, UsageError
from infra.lake import Lake
from infra.schemas import create
from infra.tables import Kind, events
from tests.conftest import put

KEY = "0123456789abcdef-secret"
NAME = "LOGS2REC_USER_KEY"


def find(lake: Lake, environment: dict[str, str] | None = None, **settings: Any) -> Any:
    made = PseudonymSettings.model_validate(settings)
    return find_keys(made, lake.root.parent / "workspace", lake, environment or {})


def key_file(folder: Path, text: str | bytes = KEY, mode: int = 0o600) -> Path:
    path = folder / "key"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


def event(lake: Lake) -> None:
    row = {"arrival": "a", "ds": "d", "event_id": "1", "user": "u", "item": "i", "ts": 0, "type": "t", "label": None}
    put(lake, events([]), [{**row, "file": "f", "position": 0}])


class TestSources:
    def test_the_environment(self, lake: Lake) -> None:
        found = find(lake, {NAME: KEY})
        assert found.keys == UserKeys((KEY.encode(),))
        assert found.made is None
        assert find(lake, {"OTHER": KEY}, key_env="OTHER").keys == found.keys
        assert not (lake.root.parent / "workspace").exists()

    @pytest.mark.parametrize("text", [KEY, f"{KEY}\n", f"\r\n {KEY} \r\n\n"])
    def test_a_file(self, lake: Lake, tmp_path: Path, text: str) -> None:
        assert find(lake, key_file=key_file(tmp_path, text)).keys == UserKeys((KEY.encode(),))

    def test_several_lines_are_a_chain_oldest_first(self, lake: Lake, tmp_path: Path) -> None:
        chain = UserKeys((KEY.encode(), b"a second key, later"))
        text = f"{KEY}\na second key, later\n"
        assert find(lake, key_file=key_file(tmp_path, text)).keys == find(lake, {NAME: text}).keys == chain

    @pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o440])
    def test_files_closed_to_others(self, lake: Lake, tmp_path: Path, mode: int) -> None:
        assert find(lake, key_file=key_file(tmp_path, mode=mode)).keys.chain == (KEY.encode(),)

    @pytest.mark.parametrize("mode", [0o644, 0o604, 0o660, 0o602, 0o777])
    def test_files_open_to_others(self, lake: Lake, tmp_path: Path, mode: int) -> None:
        with pytest.raises(ConfigError, match=rf"key is open to others \(mode {mode:03o}\); chmod 600"):
            find(lake, key_file=key_file(tmp_path, mode=mode))

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "key_file .*key: no key"),
            ("\n \n", "no key"),
            ("secret-15-bytes", "key 1 of 1 has fewer than 16 bytes"),
            (f"{KEY}\nsecret-15-bytes", "key 2 of 2 has fewer than 16 bytes.*openssl rand"),
            (b"\xff" * 20, "is not UTF-8 text"),
        ],
    )
    def test_keys_that_cannot_be_used_are_not_shown(
        self, lake: Lake, tmp_path: Path, text: str | bytes, words: str
    ) -> None:
        with pytest.raises(ConfigError, match=words) as caught:
            find(lake, key_file=key_file(tmp_path, text))
        assert "secret" not in str(caught.value)

    def test_no_file_and_two_sources(self, lake: Lake, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"pseudonyms\.key_file: .*gone cannot be read \(No such file"):
            find(lake, key_file=tmp_path / "gone")
        with pytest.raises(ConfigError, match=f"{NAME} and key_file are both set; leave one of them out"):
            find(lake, {NAME: KEY}, key_file=key_file(tmp_path))


def test_a_table_left_without_its_keys_gets_them(lake: Lake) -> None:
    """Whoever made it died before it was stamped; a rebuild then comes with columns that it cannot have."""
    create(lake, events([("f", Kind.NUMERIC)]))
    keys = UserKeys((KEY.encode(),))
    stamp(lake, events([("f", Kind.MULTI)]), keys)
    assert stored_key_id(lake) == keys.key_id


class TestTheWorkspaceSOwnKey:
    def test_it_is_made_once_and_closed(self, lake: Lake) -> None:
        first = find(lake)
        path = lake.root.parent / "workspace" / "keys" / "user.key"
        assert first.made == path
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        assert re.fullmatch(r"[0-9a-f]{64}\n", path.read_text())
        assert [p.name for p in path.parent.iterdir()] == ["user.key"]
        second = find(lake)
        assert (second.keys, second.made) == (first.keys, None)

    def test_two_workspaces_have_two_keys(self, lake: Lake, tmp_path: Path) -> None:
        other = find_keys(PseudonymSettings(), tmp_path / "other", lake, {})
        assert other.keys.key_id != find(lake).keys.key_id

    def test_of_many_makers_at_once_one_makes_it(self, lake: Lake) -> None:
        found: list[Any] = []
        threads = [threading.Thread(target=lambda: found.append(find(lake))) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 12
        assert len({f.keys for f in found}) == 1
        assert sum(f.made is not None for f in found) == 1

    def test_it_is_never_made_anew_for_tables_that_have_one(self, lake: Lake) -> None:
        keys = find(lake).keys
        stamp(lake, events([]), keys)
        path = lake.root.parent / "workspace" / "keys" / "user.key"
        path.unlink()
        with pytest.raises(UsageError, match=rf"the user key {keys.key_id} of table 'events'.* restore"):
            find(lake)
        assert not path.exists()


class TestALakeKnowsItsKeys:
    def test_the_property_outlives_commits(self, lake: Lake) -> None:
        keys = UserKeys((KEY.encode(),))
        assert stored_key_id(lake) is None
        stamp(lake, events([]), keys)
        stamp(lake, events([]), keys)
        assert lake.open("events").version() == 1
        event(lake)
        assert lake.open("events").metadata().configuration[KEY_ID] == stored_key_id(lake) == keys.key_id
        check_key(lake, keys)

    def test_other_keys_are_refused_and_told_what_to_run(self, lake: Lake) -> None:
        old, new = UserKeys((KEY.encode(),)), UserKeys((KEY.encode(), b"a second key, later"))
        stamp(lake, events([]), old)
        with pytest.raises(
            UsageError, match=rf"under the user key {old.key_id}.*{new.key_id}.*`logs2rec rekey`"
        ) as caught:
            check_key(lake, new)
        assert caught.value.exit_code == 2
        assert "secret" not in str(caught.value)
        with pytest.raises(UsageError, match="logs2rec rekey"):
            find(lake, {NAME: f"{KEY}\na second key, later"})

    @pytest.mark.parametrize("stamped", [True, False])
    def test_personal_and_plain_do_not_mix(self, lake: Lake, stamped: bool) -> None:
        keys = UserKeys((KEY.encode(),))
        stamp(lake, events([]), keys if stamped else None)
        event(lake)
        held, said = ("as pseudonyms", "personal: false") if stamped else ("as logged", "personal: true")
        with pytest.raises(UsageError, match=f"holds user ids {held}.*`{said}`"):
            check_key(lake, None if stamped else keys)
        check_key(lake, keys if stamped else None)

    def test_an_empty_table_belongs_to_nobody_yet(self, lake: Lake) -> None:
        """As a command leaves it that died between creating the table and its first rows."""
        stamp(lake, events([]), None)
        assert stored_key_id(lake) is None
        check_key(lake, UserKeys((KEY.encode(),)))

    def test_names(self) -> None:
        assert key_id(None) == PLAIN == "none"
        assert key_id(UserKeys((KEY.encode(),))) != PLAIN


class TestSideFiles:
    FIELD: ClassVar = {"name": "age", "kind": "numeric", "source": "users"}

    def contract(self) -> Contract:
        base = {"name": "log", "source": {"path": "x", "format": "json"}, "user": "u", "item": "i"}
        side = {"path": "users", "format": "json", "key": "id"}
        time = {"column": "t", "unit": "s"}
        return Contract.model_validate({**base, "time": time, "users": side, "fields": [self.FIELD]})

    def test_their_keys_are_the_same_pseudonyms(self, tmp_path: Path) -> None:
        keys = UserKeys((KEY.encode(),))
        (tmp_path / "users").write_text('{"id": "ann", "age": 3}\n{"id": 7, "age": null}\n{"id": "ann", "age": 4}\n')
        answer = side_table(self.contract(), tmp_path, "user", keys)
        assert answer is not None
        rows = {r["key"]: r["f_age"] for r in answer[1].to_pylist()}
        assert rows == {keys.pseudonym("ann"): 4.0, keys.pseudonym("7"): None}

    @pytest.mark.parametrize(
        "line", ['{"id": "ann", "age": "ann"}', '{"id": "ann", "id": "ann"}', '{"id": {"ann": 1}}', '{"id": "ann" x']
    )
    def test_a_refusal_shows_no_value(self, tmp_path: Path, line: str) -> None:
        (tmp_path / "users").write_text(line + "\n")
        with pytest.raises(DataRefused, match=r"users, position 0: .*mend the side file") as caught:
            side_table(self.contract(), tmp_path, "user", UserKeys((KEY.encode(),)))
        assert "ann" not in str(caught.value)


def test_every_error_is_one_of_ours(lake: Lake, tmp_path: Path) -> None:
    with pytest.raises(Logs2RecError):
        find(lake, key_file=tmp_path)  # a folder
