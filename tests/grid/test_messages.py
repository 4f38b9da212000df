"""Messages by the real apprise, to a web server on the loopback."""

import base64

import pytest

import report
from src.grid.messages import VARIABLE, address_file, fit, has_address, send
from src.support.errors import UserError
from tests.mailbox import SECRET, mailbox

DEAD = f"json://user:{SECRET}@127.0.0.1:9/{SECRET}"  # the port of `discard`, where nobody listens


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_a_message_arrives_with_its_picture(tmp_path, monkeypatch):
    picture = tmp_path / "curves.png"
    picture.write_bytes(b"\x89PNG of a kind")
    with mailbox() as box:
        monkeypatch.setenv(VARIABLE, box.address)
        assert send("a title", "words\nand lines", picture=picture, is_bad=True)
    (message,) = box.messages
    assert (message["title"], message["message"]) == ("a title", "words\nand lines")
    assert message["type"] == "failure"
    (attached,) = message["attachments"]
    assert base64.b64decode(attached["base64"]) == picture.read_bytes()


def test_addresses_come_from_the_environment_or_a_file_of_the_user_s(monkeypatch):
    assert not has_address()
    with pytest.raises(UserError, match=f"^notify: no address: set {VARIABLE}, or write one into"):
        send("t", "b", is_bad=False)
    with mailbox() as first, mailbox() as second:
        address_file().parent.mkdir(parents=True)
        address_file().write_text(f"# mine\n{first.address}\n")
        assert has_address()
        send("by file", "b", is_bad=False)
        monkeypatch.setenv(VARIABLE, f"{second.address} {DEAD}")
        assert not send("by environment", "b", is_bad=False)
    assert [message["title"] for message in first.messages] == ["by file"]
    assert [message["title"] for message in second.messages] == ["by environment"]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (f"nonsense://{SECRET}", "apprise cannot read one of its addresses \\(nonsense\\)"),
        (SECRET, "an address without ://"),
    ],
)
def test_an_address_that_is_none_is_refused_without_being_shown(address, words, monkeypatch):
    monkeypatch.setenv(VARIABLE, address)
    with pytest.raises(UserError, match=words) as error:
        send("t", "b", is_bad=False)
    assert SECRET not in str(error.value)


def test_a_file_without_an_address_is_told(tmp_path):
    address_file().parent.mkdir(parents=True)
    address_file().write_text("# nothing yet\n")
    with pytest.raises(UserError, match="apprise finds no address in it"):
        send("t", "b", is_bad=False)


def test_the_command_says_what_became_of_it_and_shows_no_secret(monkeypatch, capfd):
    with mailbox() as box, mailbox(status=500) as refusing:
        monkeypatch.setenv(VARIABLE, f"{box.address} {refusing.address} {DEAD}")
        assert report.main(["notify", "--test"]) == 1
        monkeypatch.setenv(VARIABLE, box.address)
        assert report.main(["notify", "--test"]) == 0
    printed = "".join(capfd.readouterr())
    dead = "JSON: not delivered: wrong, dead or out of reach\n"
    assert printed == f"JSON: sent\n{dead}{dead}JSON: sent\n"
    assert [message["title"] for message in box.messages] == ["Experiment Starter"] * 2


@pytest.mark.parametrize("arguments", [[], ["--test", "results/x"]])
def test_the_command_asks_for_one_thing(arguments, capsys):
    assert report.main(["notify", *arguments]) == 2
    assert capsys.readouterr().err == "notify: give either --test or results/BATCH\n"


def test_a_short_service_gets_the_first_lines():
    text = "one line\ntwo lines\nthree lines"
    assert fit(text, 100) == text
    assert fit(text, 22) == "one line\ntwo lines\n…"
    assert fit("x" * 30, 10) == "x" * 10
