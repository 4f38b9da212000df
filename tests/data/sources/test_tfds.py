"""tfds/NAME on folders that TFDS itself has prepared, in both of its forms."""

import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from src.config import make_config
from src.data.source import Source
from src.data.sources import tfds, tfds_records
from src.data.sources.tfds_records import TFRecords, index_of
from src.data.splits import Preprocessing
from src.data.transforms import STATISTICS
from src.support.errors import UserError
from tests.data.sources.loading import load_family
from tests.data.sources.tfds_folders import COLOURS, FORMS, SIZES, example, written
from tests.data.sources.written_sets import MNIST_SIZES, mnist_files
from tests.waiting import PATIENCE

ROOT = Path(__file__).parents[3]
PARTS = {"train": "train", "test": "test"}


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Form -> data_dir."""
    return written(tmp_path_factory.getbasetemp())


@pytest.fixture
def copied(folders, tmp_path):
    """copied(form): a data_dir with a copy of tfds/colours alone, to be spoilt."""

    def copy(form: str) -> Path:
        ignored = shutil.ignore_patterns(".*")  # indexes
        shutil.copytree(folders[form] / "colours", tmp_path / form / "colours", ignore=ignored)
        return tmp_path / form

    return copy


def load(name: str, data_dir: Path, splits_map=PARTS, preprocessing=None, **keys):
    return load_family(f"tfds/{name}", data_dir, splits_map, preprocessing, **keys)


def check(name: str, data_dir: Path, splits_map=PARTS) -> None:
    """What shows of a name and its splits without reading examples."""
    config = make_config({"dataset": f"tfds/{name}", "data_dir": str(data_dir)})
    tfds.check(config, Source(config.dataset, splits_map))


def examples(split) -> list[tuple[bytes, int]]:
    return [
        (image.tobytes(), label)
        for image, label in map(split.dataset.__getitem__, range(len(split)))
    ]


def in_another_process(script: str, *arguments) -> str:
    """What it prints."""
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


# ---- What is read ------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_the_examples_are_those_that_were_prepared(folders, form):
    data = load("colours", folders[form])
    assert (data.class_names, data.n_classes) == (tuple(COLOURS), 3)
    assert (data.input_shape, data.version) == ((3, 12, 12), "1.10.0")
    for name, split in data.splits.items():
        made = [example(name, number) for number in range(SIZES[name])]
        pixels = [(Image.open(io.BytesIO(image)).tobytes(), label) for image, label in made]
        assert sorted(examples(split)) == sorted(pixels)
        assert type(split.dataset[0][1]) is int
    assert data.splits["test"].transform(data.splits["test"].dataset[0][0]).shape == (3, 12, 12)


SPELLINGS = [
    "train[:90%]",
    "train[90%:]",
    "train[10:20]",
    "train[-10:]",
    "train[37:83]",
    "train[1shard]",
    "train[1shard:]",
    "train+test",
    "train[:50%] + test[:10]",
    "test[5:10]+test[5:10]",
    "all",
]


THEIRS = """
import json, sys, tensorflow_datasets as tfds
builder = tfds.builder_from_directory(sys.argv[1])
for spelling in json.loads(sys.argv[2]):
    source = builder.as_data_source(split=spelling)
    whole = map(source.__getitem__, range(len(source)))
    print(json.dumps([(e["image"].tobytes().hex(), int(e["label"])) for e in whole]))
"""


@pytest.mark.parametrize("form", FORMS)
def test_slices_are_those_of_tfds_in_its_order(folders, form):
    folder = folders["array_record"] / "colours" / "1.10.0"
    theirs = in_another_process(THEIRS, folder, json.dumps(SPELLINGS)).splitlines()
    splits_map = {f"s{i}": spelling for i, spelling in enumerate(SPELLINGS)}
    data = load("colours", folders[form], splits_map)
    for (name, spelling), line in zip(splits_map.items(), theirs, strict=True):
        whole = [(bytes.fromhex(image), label) for image, label in json.loads(line)]
        assert examples(data.splits[name]) == whole, spelling


@pytest.mark.parametrize("form", FORMS)
def test_examples_of_train_in_another_split_are_reported(folders, form, log_lines):
    load("colours", folders[form], {"train": "train[:90%]", "val": "train[80%:]"})
    (line,) = [line for line in log_lines if "are in train" in line]
    assert line.startswith("data_splits_map: ")


def test_the_newest_version_is_taken_unless_one_is_given(folders):
    data_dir = folders["array_record"]
    assert load("colours", data_dir).version == "1.10.0"
    assert load("colours:1.9.0", data_dir).version == "1.9.0"
    assert load("colours", data_dir, data_version="1.9.0").version == "1.9.0"
    assert load("colours:1.9.0", data_dir, data_version="1.9.0").version == "1.9.0"
    with pytest.raises(UserError, match=r"data_version: got '1.10.0', expected 1.9.0, as dataset"):
        load("colours:1.9.0", data_dir, data_version="1.10.0")


@pytest.mark.parametrize("form", FORMS)
def test_grey_images_of_several_sizes_and_classes_without_names(folders, form):
    data = load(
        "letters", folders[form], {"train": "train"}, preprocessing=Preprocessing((1, 6, 6))
    )
    assert (data.input_shape, data.n_classes, data.class_names) == ((1, 6, 6), 4, tuple("0123"))
    images = [data.splits["train"].dataset[i][0] for i in range(SIZES["train"])]
    assert {(image.mode, image.size) for image in images} == {("L", (8, 8)), ("L", (9, 8))}
    assert {data.splits["train"].transform(image).shape for image in images} == {(1, 6, 6)}
    with pytest.raises(UserError, match=r"model_input_shape: .*tfds/letters/small differ in size"):
        load("letters", folders[form], {"train": "train"})


def test_configurations(folders):
    data_dir, preprocessing = folders["tfrecord"], Preprocessing((1, 6, 6))
    for name, size in {"letters": 8, "letters/small": 8, "letters/big:1.9.0": 16}.items():
        data = load(name, data_dir, {"train": "train"}, preprocessing=preprocessing)
        assert data.splits["train"].dataset[0][0].size[1] == size
    with pytest.raises(
        UserError, match="unknown 'tfds/letters/bigg'; did you mean 'tfds/letters/big'"
    ):
        load("letters/bigg", data_dir)


@pytest.mark.parametrize("form", FORMS)
def test_a_real_name_is_read_from_its_folder(folders, form):
    data = load("cifar10", folders[form])
    assert (data.version, data.n_classes, data.input_shape) == ("3.0.2", 10, (3, 32, 32))
    assert (data.preprocessing.mean, data.preprocessing.std) == STATISTICS["cifar10"]
    own = load("cifar10", folders[form], preprocessing=Preprocessing(mean=(0.5,), std=(0.5,)))
    assert own.preprocessing.mean == (0.5,)


# ---- What there is not -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("colurs", "dataset: unknown 'tfds/colurs'; did you mean 'tfds/colours'?"),
        ("mnits", "did you mean 'tfds/mnist'?"),
        ("colours/small", "unknown 'tfds/colours/small'"),
        ("letters/tall", "there is: tfds/letters/big, tfds/letters/small"),
        ("colours:2.0.0", "data_version: unknown '2.0.0'; .*there is: 1.10.0, 1.9.0"),
        ("cifar10:1.0.0", "data_version: unknown '1.0.0'; .*there is: 3.0.2"),
        ("cifar10/small", "unknown 'tfds/cifar10/small'; did you mean 'tfds/cifar10'"),
        ("cifar10_corrupted/nois_1", r"did you mean 'tfds/cifar10_corrupted/.*\(95 in all"),
        ("colours/1.9.0/", "expected tfds/NAME, tfds/NAME/CONFIG or tfds/NAME:VERSION"),
        ("mnist", "tfds/mnist is not prepared, and data_download is false.*mnist/3.0.1"),
        ("cifar10_corrupted", "is not prepared.*cifar10_corrupted/brightness_1/1.0.0"),
        ("boxes", r"one class each; it has box: BBoxFeature\(.*, image: Image\("),
    ],
)
def test_what_there_is_not_is_named(folders, name, words):
    with pytest.raises(UserError, match=words) as caught:
        load(name, folders["array_record"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spelling", "words"),
    [
        ("tset", "train: 'tset': tfds/colours has no 'tset', there is: .* did you mean 'test'"),
        ("test+val[:9]", "has no 'val', there is: 'train', 'test'"),
        ("train[10:10]", r"train: 'train\[10:10\]' is empty, as 'train' has 120 examples"),
        ("test+train[20:10]", r"'train\[20:10\]' is empty"),
        ("train[:0%]", "is empty"),
        ("train[:121]", "incompatible with 120 examples"),
        ("train[:101%]", r"in \[-100, 100\]"),
        ("train[:9", "Unrecognized split format"),
        ("all[:9]", "'all' does not support slice"),
        ("train+", "cannot read ''"),
    ],
)
def test_splits_that_there_are_not(folders, spelling, words):
    splits_map, data_dir = {"train": spelling}, folders["tfrecord"]
    with pytest.raises(UserError, match=f"data_splits_map: .*{words}") as caught:
        check("colours", data_dir, splits_map)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_examples_without_a_class_are_refused(folders, form):
    with pytest.raises(
        UserError, match=r"data_splits_map: example 0 of tfds/letters.*:test has no"
    ):
        load("letters", folders[form], preprocessing=Preprocessing((1, 6, 6)))


def test_names_are_checked_without_data(tmp_path):
    """As on a login node: what TFDS knows is taken, whatever its splits."""
    check("mnist", tmp_path / "none", {"train": "anything"})
    check("mnist:3.0.1", tmp_path / "none")
    for name in ("mnits", "mnist:9.0.0"):
        with pytest.raises(UserError, match="unknown"):
            check(name, tmp_path / "none")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    for name in [n for n in sys.modules if n.partition(".")[0] == "tensorflow_datasets"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(UserError, match="pip install tensorflow-datasets") as caught:
        check("mnist", tmp_path)
    assert isinstance(caught.value.__cause__, ImportError)


# ---- Broken folders ----------------------------------------------------------------------


def first_shard(data_dir: Path) -> Path:
    return next((data_dir / "colours" / "1.10.0").glob("colours-train.*-00000-of-00003"))


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("download", [True, False])
def test_a_folder_that_is_not_whole_is_none(copied, file, download):
    """Of another version there is one, which is taken unless this one is requested."""
    data_dir = copied("array_record")
    (data_dir / "colours" / "1.10.0" / file).unlink()
    assert load("colours", data_dir, data_download=download).version == "1.9.0"
    with pytest.raises(UserError, match=r"data_version: unknown '1\.10\.0'"):
        load("colours:1.10.0", data_dir, data_download=download)


def test_tfds_does_not_take_a_half_for_a_whole(tmp_path):
    folder = tmp_path / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    (folder / "features.json").write_text("{}")
    for download in (True, False):
        with pytest.raises(UserError, match=r"not whole, as there is no dataset_info.json: copy"):
            load("mnist", tmp_path, data_download=download)
    assert [path.name for path in tmp_path.iterdir()] == ["mnist"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "other", "zeros", "noise"])
def test_broken_files_are_named(copied, form, damage):
    data_dir = copied(form)
    file = first_shard(data_dir)
    content = file.read_bytes()
    other = file.with_name(file.name.replace("train", "test")).read_bytes()
    size = len(content)
    spoilt = {"cut": content[: size // 2], "empty": b"", "other": other}
    spoilt |= {"zeros": content[: size // 2] + bytes(size - size // 2)}
    spoilt |= {"noise": np.random.default_rng(0).bytes(size)}
    file.unlink() if damage == "missing" else file.write_bytes(spoilt[damage])
    with pytest.raises(UserError, match=f"tfds/colours cannot be read .*{file.name}") as caught:
        load("colours", data_dir)
    assert "\n" not in str(caught.value)
    assert len(load("colours", data_dir, {"train": "test"}).splits["train"]) == SIZES["test"]


@pytest.mark.parametrize("form", FORMS)
def test_a_broken_description_is_named(copied, form):
    data_dir = copied(form)
    (data_dir / "colours" / "1.10.0" / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match=r"tfds/colours cannot be read .*dataset_info.json"):
        load("colours", data_dir)


# ---- Preparing ---------------------------------------------------------------------------

# Of each process that starts: mnist is fetched from another place, and has few examples.
SITECUSTOMIZE = """
import sys
sys.path.append({root!r})
if "src.data.sources.tfds_files" in sys.orig_argv:
    import src.data.sources.fetch
    from tensorflow_datasets.image_classification import mnist
    src.data.sources.fetch.NO_PROGRESS_SECONDS = 1.0
    mnist.MNIST.URL = {url!r}
    mnist._TRAIN_EXAMPLES, mnist._TEST_EXAMPLES = 30, 12
"""
NO_TENSORFLOW = """
    class Hidden:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "tensorflow":
                raise ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow")
    sys.meta_path.insert(0, Hidden())
"""


@pytest.fixture
def mnist(site, tmp_path, monkeypatch):
    """mnist(more): a data_dir to be filled by TFDS's own generator, from a site on the loopback."""
    site.files = {f"/{name}.gz": gzip.compress(data) for name, data in mnist_files().items()}

    def customize(more: str = "") -> Path:
        text = SITECUSTOMIZE.format(root=str(ROOT), url=f"{site.address}/") + more
        (tmp_path / "site").mkdir(exist_ok=True)
        (tmp_path / "site" / "sitecustomize.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
        return tmp_path / "data"

    return customize


@pytest.mark.slow
def test_two_processes_prepare_a_data_set_once(mnist, site, tmp_path):
    data_dir = mnist()
    script = """
import hashlib, sys
from tests.data.sources.loading import load_family
parts = {"train": "train", "test": "test"}
data = load_family("tfds/mnist", sys.argv[1], parts, None, data_download=True)
images = [data.splits[s].dataset[i] for s in parts for i in range(len(data.splits[s]))]
pixels = b"".join(sorted(image.tobytes() + bytes([label]) for image, label in images))
print(len(images), data.version, hashlib.md5(pixels).hexdigest(), "tensorflow" in sys.modules)
"""
    command = [sys.executable, "-c", script, data_dir]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(2)]
    (printed, log), (also, other_log) = [process.communicate(timeout=PATIENCE) for process in both]
    raw = [
        np.frombuffer(mnist_files()[f"{s}-images-idx3-ubyte"][16:], np.uint8) for s in MNIST_SIZES
    ]
    labels = [np.arange(n) % 10 for n in MNIST_SIZES.values()]
    images = zip(np.concatenate(raw).reshape(-1, 784), np.concatenate(labels), strict=True)
    pixels = b"".join(sorted(image.tobytes() + bytes([label]) for image, label in images))
    expected = f"42 3.0.1 {hashlib.md5(pixels).hexdigest()} False\n"
    assert (printed, also) == (expected, expected), log + other_log
    assert sorted(site.requests) == sorted(site.files)
    assert not list(data_dir.rglob("incomplete*"))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["refused", "silent", "missing", "no_tensorflow"])
def test_what_cannot_be_prepared_is_reported_soon_and_can_be_later(mnist, site, fault):
    words = {
        "refused": "ConnectionError",
        "silent": "Read timed out",
        "missing": "HTTP code: 404",
        "no_tensorflow": "to be prepared, not to be read, it needs `pip install tensorflow-cpu`",
    }[fault]
    data_dir = mnist(NO_TENSORFLOW if fault == "no_tensorflow" else "")
    files, site.files = site.files, {} if fault == "missing" else site.files
    if fault == "refused":
        data_dir = mnist("    mnist.MNIST.URL = 'http://127.0.0.1:9/'\n")
    if fault == "silent":
        site.stalls.set()
    start = time.monotonic()
    with pytest.raises(UserError, match=f"tfds/mnist could not be prepared .*{words}") as caught:
        load("mnist", data_dir, data_download=True)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 30
    with pytest.raises(UserError, match="is not prepared, and data_download is false"):
        load("mnist", data_dir)
    site.files = files
    site.stalls.clear()
    mnist()
    data = load("mnist", data_dir, data_download=True)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 30, "test": 12}
    assert load("mnist", data_dir).version == "3.0.1"


# ---- TFRecord files and their indexes ----------------------------------------------------


@dataclass
class Piece:
    """As TFDS says which records of a file are meant."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


def crc32c(content: bytes) -> int:
    """Bit by bit, as RFC 3720 has it."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(content: bytes) -> bytes:
    crc = crc32c(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF).to_bytes(4, "little")


def tfrecord(records: list[bytes]) -> bytes:
    lengths = [len(record).to_bytes(8, "little") for record in records]
    parts = [n + masked(n) + r + masked(r) for n, r in zip(lengths, records, strict=True)]
    return b"".join(parts)


RECORDS = st.lists(st.binary(max_size=40), min_size=1, max_size=8)
some_files = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_the_checksum_is_the_one_of_the_rfc():
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(bytes(range(32))) == 0x46DD794E


@some_files
@given(RECORDS, st.data())
def test_any_records_are_read_at_random(tmp_path, records, data):
    file = tmp_path / "f.tfrecord"
    file.write_bytes(tfrecord(records))
    n = len(records)
    skip = data.draw(st.integers(0, n - 1))
    take = data.draw(st.integers(1, n - skip))
    found = TFRecords([Piece(str(file), skip, take, n), Piece(str(file), 0, 1, n)])
    assert [found[i] for i in range(len(found))] == [*records[skip : skip + take], records[0]]
    for outside in (-1, len(found)):
        with pytest.raises(IndexError):
            found[outside]


@some_files
@given(RECORDS, st.data())
def test_a_file_that_is_cut_or_changed_in_a_length_is_refused(tmp_path, records, data):
    content = bytearray(tfrecord(records))
    record = data.draw(st.integers(0, len(records) - 1))
    start = len(tfrecord(records[:record])) if record else 0
    if data.draw(st.booleans()):
        content[start + data.draw(st.integers(0, 11))] ^= data.draw(st.integers(1, 255))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    file = tmp_path / "f.tfrecord"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"f\.tfrecord"):
        TFRecords([Piece(str(file), 0, len(records), len(records))])


def test_where_records_start_is_looked_up_once(copied, log_lines, monkeypatch):
    data_dir = copied("tfrecord")
    before = examples(load("colours", data_dir).splits["train"])
    looked_up = [line for line in log_lines if "looking up the records" in line]
    assert len(looked_up) == 2
    assert "colours-train.tfrecord-00000-of-00003, … (3 files), once" in looked_up[0]
    monkeypatch.setattr(tfds_records, "find_starts", None)
    assert examples(load("colours", data_dir).splits["train"]) == before


@pytest.mark.parametrize("damage", ["torn", "empty", "foreign", "other", "shifted", "pickle"])
def test_a_wrong_index_is_made_again(copied, damage):
    data_dir = copied("tfrecord")
    before = examples(load("colours", data_dir).splits["train"])
    file = first_shard(data_dir)
    index, other = index_of(file), index_of(file.with_name(file.name.replace("train", "test")))
    right = index.read_bytes()
    if damage == "shifted":
        starts = np.load(index)
        starts[4] = starts[3] + 8
        np.save(index, starts)
    elif damage == "pickle":
        np.save(index, np.array([{}]), allow_pickle=True)
    else:
        others = {"torn": right[:-9], "empty": b"", "foreign": b"PK", "other": other.read_bytes()}
        index.write_bytes(others[damage])
    assert examples(load("colours", data_dir).splits["train"]) == before
    assert index.read_bytes() == right


def test_a_file_that_has_changed_is_never_read_by_an_old_index(copied):
    """Neither where its index is on disk, nor while a run reads it."""
    data_dir = copied("tfrecord")
    file = first_shard(data_dir)
    old = file.with_name(file.name.replace("00000", "00002"))  # has as many examples
    running = load("colours", data_dir).splits["train"].dataset
    assert running[0]
    assert file.stat().st_size != old.stat().st_size
    os.replace(old, file)
    for i in range(40):
        with pytest.raises(ValueError, match="has changed since its records were looked up"):
            running[i]
    shutil.copy(file, old)
    again = load("colours", data_dir, {"train": "train[:1shard]", "last": "train[2shard:]"})
    assert examples(again.splits["train"]) == examples(again.splits["last"])


def test_where_no_index_can_be_kept_it_is_made_each_time(copied, log_lines):
    data_dir = copied("tfrecord")
    for file in (data_dir / "colours" / "1.10.0").glob("*.tfrecord-*"):
        (index_of(file) / "in the way").mkdir(parents=True)
    before = examples(load("colours", data_dir).splits["train"])
    assert examples(load("colours", data_dir).splits["train"]) == before
    assert sum("takes no files: they are looked up each time" in line for line in log_lines) == 4


def test_processes_at_an_index_at_once(tmp_path):
    records = [bytes([i % 251]) * (i % 7) for i in range(3000)]
    file, several = tmp_path / "f.tfrecord", get_context("fork")
    file.write_bytes(tfrecord(records))
    ready, answers = several.Barrier(3), several.Queue()

    def read() -> None:
        ready.wait()
        found = TFRecords([Piece(str(file), 0, len(records), len(records))])
        answers.put([found[i] for i in range(len(found))] == records)

    for _ in range(5):
        readers = [several.Process(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        assert [answers.get(timeout=PATIENCE) for _ in readers] == [True] * 3
        for reader in readers:
            reader.join()
        assert {path.name for path in tmp_path.iterdir()} == {file.name, index_of(file).name}
        assert len(np.load(index_of(file))) == len(records) + 3
        index_of(file).unlink()


# ---- Worker processes --------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_workers_read_what_the_process_itself_reads(folders, form):
    dataset = load("colours", folders[form], {"train": "train[5:95%]"}).splits["train"].dataset
    whole = [
        (np.array(image).tolist(), label) for image, label in map(dataset.__getitem__, range(60))
    ]
    for num_workers in (0, 1, 2):
        loader = DataLoader(
            dataset,
            batch_size=None,
            sampler=range(60),
            num_workers=num_workers,
            collate_fn=as_lists,
        )
        assert list(loader) == whole
    again = pickle.loads(pickle.dumps(dataset))  # noqa: S301 - our own
    assert as_lists(again[7]) == whole[7]


def as_lists(example) -> tuple[list, int]:
    return np.array(example[0]).tolist(), example[1]


@pytest.mark.slow
def test_the_process_itself_opens_no_array_record(folders):
    """A worker that is forked from one that does crashes or hangs."""
    script = """
import os, sys
from tests.data.sources.loading import load_family
count = lambda: len(os.listdir("/proc/self/task"))
before = count()
data = load_family("tfds/colours", sys.argv[1], {"train": "train", "test": "all"}, None)
data.splits["train"].dataset[1]
print(count() - before)
"""
    assert int(in_another_process(script, folders["array_record"])) < 8


@pytest.mark.slow
def test_without_workers_it_opens_them_and_workers_that_come_all_the_same_read_on(folders):
    """A run without workers, then one with them, in the same process."""
    script = """
import sys
from torch.utils.data import DataLoader
from tests.data.sources.loading import load_family
as_lists = lambda example: (example[0].tobytes(), example[1])
for workers in 0, 2, 0:
    parts = {"train": "train"}
    data = load_family("tfds/colours", sys.argv[1], parts, None, num_workers=workers)
    dataset = data.splits["train"].dataset
    alone = [as_lists(dataset[i]) for i in range(20)]
    options = {"batch_size": None, "collate_fn": as_lists, "num_workers": 2}
    assert list(DataLoader(dataset, sampler=range(20), **options)) == alone
    print(type(dataset.records.reader).__name__)
"""
    found = in_another_process(script, folders["array_record"])
    assert found.split() == ["OpenFiles", "ReaderProcess", "OpenFiles"]


def test_what_reads_array_record_for_the_process(folders, monkeypatch):
    """It outlives the signals that are meant for the run, and mixes no answers up."""
    dataset = load("colours", folders["array_record"]).splits["train"].dataset
    expected = [as_lists(dataset[i]) for i in range(4)]
    reader = dataset.records.reader
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        reader.process.send_signal(number)
    assert as_lists(dataset[1]) == expected[1]

    def interrupt() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(reader.connection, "recv", interrupt)
        with pytest.raises(KeyboardInterrupt):
            dataset[2]
    assert as_lists(dataset[3]) == expected[3]
    assert as_lists(dataset[0]) == expected[0]


@pytest.mark.slow
def test_it_ends_with_the_process(folders):
    script = """
import os, signal, sys
from tests.data.sources.loading import load_family
data = load_family("tfds/colours", sys.argv[1], {"train": "train"}, None)
print(data.splits["train"].dataset.records.reader.process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", script, folders["array_record"]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    reader, patience = Path("/proc", done.stdout.strip()), time.monotonic() + 20
    while reader.exists():
        assert time.monotonic() < patience
        time.sleep(0.02)
