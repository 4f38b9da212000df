import json

from src.logging import provenance
from src.logging.provenance import CodeState, write_provenance


def read(folder) -> dict:
    return json.loads((folder / "provenance.json").read_text())


def test_each_attempt_is_remembered_with_what_was_other_then(tmp_path, monkeypatch):
    assert write_provenance(tmp_path) == []
    first = read(tmp_path)
    assert first["earlier_attempts"] == []
    code = CodeState({"commit": "abc"}, "a diff")
    monkeypatch.setattr(CodeState, "of_repository", lambda root: code)
    monkeypatch.setattr(CodeState, "of_frozen_copy", lambda root: None)
    monkeypatch.setattr(provenance, "_processor", lambda: "Other CPU")
    assert write_provenance(tmp_path) == [
        f"commit: was {first['commit']}, is abc",
        f"processor: was {first['machine']['processor']}, is Other CPU",
    ]
    assert write_provenance(tmp_path) == []
    second, (earlier, later) = read(tmp_path), read(tmp_path)["earlier_attempts"]
    assert earlier["commit"] == first["commit"]
    assert (later["commit"], second["commit"]) == ("abc", "abc")
    assert earlier["other_packages"] == {}


def test_a_diff_stands_beside_it_only_where_the_code_was_edited(tmp_path, monkeypatch):
    monkeypatch.setattr(CodeState, "of_frozen_copy", lambda root: None)
    for diff in ("- old\n+ new\n", ""):
        code = CodeState({"commit": "a"}, diff)
        monkeypatch.setattr(CodeState, "of_repository", lambda root, code=code: code)
        write_provenance(tmp_path)
        found = [path.read_text() for path in tmp_path.glob("uncommitted.diff")]
        assert found == ([diff] if diff else [])


def test_other_packages_are_named(tmp_path):
    write_provenance(tmp_path)
    facts = read(tmp_path)
    facts["packages"] |= {"torch": "1.0", "gone": "2.0"}
    (tmp_path / "provenance.json").write_text(json.dumps(facts))
    (difference,) = write_provenance(tmp_path)
    assert difference.startswith("torch: was 1.0, is ")
    (earlier,) = read(tmp_path)["earlier_attempts"]
    assert earlier["other_packages"] == {"torch": "1.0", "gone": "2.0"}


def test_a_torn_file_of_an_earlier_attempt_does_no_harm(tmp_path):
    (tmp_path / "provenance.json").write_text('{"commit": ')
    assert write_provenance(tmp_path) == []
    assert read(tmp_path)["earlier_attempts"] == []
