"""Sets of the hub: fetched from a hub on the loopback, and read when that is gone."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.waiting import PATIENCE

OLD, NEW = "1" * 40, "2" * 40
CONFIGURATIONS = """---
configs:
- config_name: large
  data_files: large.csv
- config_name: small
  data_files: small.csv
---
"""
FILES = {
    ("own/pets", OLD): {"train.csv": "x,label\n1,a\n2,b\n3,a\n"},
    ("own/pets", NEW): {"train.csv": "x,label\n1,a\n2,b\n3,a\n4,b\n", "test.csv": "x,label\n5,b\n"},
    ("own/two", NEW): {
        "README.md": CONFIGURATIONS,
        "large.csv": "x,label\n1,a\n2,b\n",
        "small.csv": "x,label\n1,a\n",
    },
}


class Hub(ThreadingHTTPServer):
    """What the library asks of huggingface.co, for FILES."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[str] = []
        self.is_silent = False
        self.ended = threading.Event()
        self.address = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        if self.server.is_silent:
            self.server.ended.wait(60)
        kind, *rest = self.path.partition("?")[0].removeprefix("/api").strip("/").split("/")
        name, rest = "/".join(rest[:2]), rest[2:]
        if kind != "datasets" or not any(known == name for known, _ in FILES):
            error = "RepoNotFound" if kind == "datasets" else "EntryNotFound"
            return self.reply(404, b"", {"X-Error-Code": error} if self.path != "/" else {})
        revision = rest[1] if len(rest) > 1 and rest[1] != "main" else NEW
        if (name, revision) not in FILES:
            return self.reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
        files = {path: text.encode() for path, text in FILES[name, revision].items()}
        headers = {"X-Repo-Commit": revision}
        if rest[:1] == ["resolve"]:
            if rest[2] not in files:
                return self.reply(404, b"", headers | {"X-Error-Code": "EntryNotFound"})
            tag = hashlib.sha1(files[rest[2]]).hexdigest()
            return self.reply(200, files[rest[2]], headers | {"ETag": f'"{tag}"'})
        if rest[:1] == ["tree"]:
            return self.reply(200, json.dumps(listing(files)).encode(), headers)
        about = {"id": name, "sha": revision, "private": False, "tags": [], "downloads": 0}
        about["siblings"] = [{"rfilename": path} for path in files]
        return self.reply(200, json.dumps(about).encode(), headers)

    do_HEAD = do_GET  # noqa: N815 - the name http.server looks for

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["paths"]
        _, _, *name, _, revision = self.path.split("/")[1:]
        files = {path: text.encode() for path, text in FILES["/".join(name), revision].items()}
        found = [entry for entry in listing(files) if entry["path"] in request]
        self.reply(200, json.dumps(found).encode(), {})

    def reply(self, code: int, body: bytes, headers: dict) -> None:
        self.send_response(code)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


def listing(files: dict[str, bytes]) -> list[dict]:
    hashes = {path: hashlib.sha1(content).hexdigest() for path, content in files.items()}
    return [
        {"type": "file", "path": path, "size": len(content), "oid": hashes[path]}
        for path, content in files.items()
    ]


@pytest.fixture
def hub():
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.ended.set()
    server.shutdown()
    server.server_close()


OPEN = """
import json, sys
from loguru import logger
from src.config import make_config
from src.data.source import Source
from src.data.sources.hf import open_parts
from src.support.errors import UserError

name, splits_map, folder, download, revision = json.loads(sys.argv[1])
lines = []
logger.remove()
logger.add(lambda message: lines.append(message.record["message"]))
try:
    config = make_config({"data_dir": folder, "data_download": download})
    parts, revision = open_parts(config, Source(f"hf/{name}", splits_map, revision))
    found = {"sizes": {base: len(part) for base, part in parts.items()}, "revision": revision}
    found["fingerprints"] = [part._fingerprint for part in parts.values()]
except UserError as error:
    found = {"error": str(error)}
print(json.dumps(found | {"log": lines}))
"""


@pytest.fixture
def start(hub, tmp_path):
    """start(name, …): a process that opens the set, with a network as this hub is."""
    environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
    environment |= {"HF_HUB_OFFLINE": "0", "HOME": str(tmp_path / "nobody")}

    def begin(name, splits_map=None, download=True, revision=None) -> subprocess.Popen:
        splits_map = splits_map or {"train": "train"}
        request = json.dumps([name, splits_map, str(tmp_path), download, revision])
        command = [sys.executable, "-c", OPEN, request]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return begin


def outcome(process: subprocess.Popen) -> dict:
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, "")
    found = json.loads(out)
    assert "\n" not in found.get("error", "")
    return found


@pytest.mark.slow
def test_a_set_is_fetched_once_and_of_the_requested_revision(hub, start, tmp_path):
    both = {"train": "train", "test": "test"}
    fetched = outcome(start("own/pets", both))
    assert (fetched["sizes"], fetched["revision"]) == ({"train": 4, "test": 1}, NEW)
    assert not fetched["log"]
    hub.requests.clear()
    for keys in ({"download": False}, {"revision": NEW}):
        again = outcome(start("own/pets", both, **keys))
        assert again["sizes"] == fetched["sizes"]
        assert again["fingerprints"] == fetched["fingerprints"]  # the same tokens are found
    assert hub.requests == []
    older = outcome(start("own/pets", revision=OLD))
    assert (older["sizes"], older["revision"]) == ({"train": 3}, OLD)
    newest = outcome(start("own/pets"))
    assert newest["revision"] == NEW
    assert {path.name for path in tmp_path.iterdir()} == {"hf", "home"}


@pytest.mark.slow
def test_without_a_hub_what_is_on_disk_is_taken_and_the_rest_reported_soon(hub, start):
    outcome(start("own/pets"))
    hub.shutdown()
    hub.server_close()
    kept = outcome(start("own/pets"))
    assert (kept["sizes"], kept["revision"]) == ({"train": 4}, NEW)
    assert any(
        f"hf/own/pets:default as it was fetched: revision {NEW}" in line for line in kept["log"]
    )
    for keys, message in (
        ({"name": "own/pets", "revision": OLD}, f"hf/own/pets of revision {OLD} is not in "),
        ({"name": "own/dogs"}, "hf/own/dogs is not in "),
    ):
        failed = outcome(start(**keys))
        assert message in failed["error"]
        assert "does not answer: ConnectError" in failed["error"]


@pytest.mark.slow
def test_a_silent_hub_is_given_up_soon(hub, start):
    hub.is_silent = True
    failed = outcome(start("own/pets"))
    assert "does not answer: ReadTimeout" in failed["error"]
    failed = outcome(start("own/pets", download=False))
    assert "hf/own/pets is not in" in failed["error"]
    assert failed["error"].endswith("data_download is false")
    assert len(hub.requests) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "own/dogs"}, "hf/own/dogs cannot be read (DatasetNotFoundError: "),
        ({"name": "own/pets", "revision": "3" * 40}, "cannot be read (DatasetNotFoundError: Revi"),
        (
            {"name": "own/pets", "splits_map": {"train": "trian"}},
            "has no 'trian', there is: 'train'",
        ),
        ({"name": "own/two"}, "['large', 'small']"),
        ({"name": "own/two:medium"}, "['large', 'small']"),
    ],
)
def test_what_the_hub_does_not_have_is_reported_in_a_line(start, keys, message):
    assert message in outcome(start(**keys))["error"]


@pytest.mark.slow
def test_a_branch_that_was_fetched_is_found_without_a_hub(hub, start):
    assert outcome(start("own/pets", revision="main"))["revision"] == NEW
    hub.shutdown()
    hub.server_close()
    kept = outcome(start("own/pets", revision="main"))
    assert (kept["sizes"], kept["revision"]) == ({"train": 4}, NEW)


@pytest.mark.slow
def test_another_configuration_is_not_taken_for_the_one_that_is_meant(start):
    outcome(start("own/two:large"))
    for revision in (None, NEW):
        failed = outcome(start("own/two", download=False, revision=revision))
        assert "one of its configurations: hf/own/two:large" in failed["error"]


@pytest.mark.slow
def test_configurations_are_told_apart(start):
    for name, size in (("large", 2), ("small", 1)):
        assert outcome(start(f"own/two:{name}"))["sizes"] == {"train": size}
    kept = outcome(start("own/two:large", download=False))
    assert kept["sizes"] == {"train": 2}
    failed = outcome(start("own/two", download=False))
    assert "one of its configurations: hf/own/two:large, hf/own/two:small" in failed["error"]


@pytest.mark.slow
def test_two_processes_fetch_at_the_same_time(start, tmp_path):
    found = [outcome(process) for process in [start("own/pets"), start("own/pets")]]
    assert [one["sizes"] for one in found] == [{"train": 4}] * 2
    assert len(list((tmp_path / "hf").rglob("*train.arrow"))) == 1


TOKENIZER = """
import sys
from src.data.text import load_tokenizer
from src.support.errors import UserError
import transformers.models.auto.tokenization_auto
for name in sys.argv[1:]:
    try:
        print(len(load_tokenizer(name, download=True)))
    except UserError as error:
        print(str(error))
"""


@pytest.mark.slow
def test_a_tokenizer_needs_no_hub_where_it_is_a_folder(hub, tmp_path):
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from test_text import write_tokenizer

    folder = write_tokenizer(tmp_path / "tokenizer")
    hub.shutdown()
    hub.server_close()
    environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", TOKENIZER, folder, "own/tokenizer"]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    local, remote = done.stdout.splitlines()
    assert local == "15", done.stderr
    assert "not in its cache, and http://127.0.0.1" in remote
