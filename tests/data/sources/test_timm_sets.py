"""timm/torch/NAME and timm/folder/PATH on files of the real formats that are written here."""

import gzip
import hashlib
import io
import pickle
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from PIL import Image
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10, MNIST, FashionMNIST

from src.data.sources import timm
from src.data.splits import Preprocessing
from src.support.errors import UserError
from tests.data.sources.loading import load_family
from tests.data.sources.written_sets import MNIST_SIZES, mnist_files, write_cifar, write_mnist

BOTH = {"train": "train", "test": "test"}


def load(name: str, data_dir: Path, splits_map=BOTH, preprocessing=None, **keys):
    return load_family(f"timm/{name}", data_dir, splits_map, preprocessing, **keys)


def test_cifar10_parts_and_slices_are_those_of_the_files(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch)
    splits_map = {"train": "train[:90%]", "val": "train[90%:]+test[:2]", "test": "test"}
    data = load("torch/cifar10", tmp_path, splits_map)
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 45,
        "val": 7,
        "test": 10,
    }
    assert (data.input_shape, data.n_classes) == ((3, 32, 32), 10)
    train, test = CIFAR10(str(tmp_path), train=True), CIFAR10(str(tmp_path), train=False)
    for ours, (image, label) in [
        (data.splits["train"].dataset[44], train[44]),
        (data.splits["val"].dataset[4], train[49]),
        (data.splits["val"].dataset[6], test[1]),
    ]:
        assert ours[0].tobytes() == image.tobytes()
        assert ours[1] == label
        assert type(ours[1]) is int
    inputs = data.splits["test"].transform(test[0][0])
    assert (inputs.shape, inputs.dtype) == ((3, 32, 32), torch.float32)


@pytest.mark.parametrize("base", ["val", "validation", "Train", "eval"])
def test_only_parts_that_exist_are_taken(tmp_path, base):
    """timm gives the test set for each of these."""
    write_mnist(tmp_path)
    with pytest.raises(
        UserError, match=f"fashion_mnist has no '{base}', there is: 'train', 'test'"
    ):
        load("torch/fashion_mnist", tmp_path, {"train": base})


@pytest.mark.parametrize(
    ("preprocessing", "shape"),
    [
        (Preprocessing(), (1, 28, 28)),
        (Preprocessing((3, 32, 32), (0.5,), (0.5,)), (3, 32, 32)),
        (Preprocessing(mean=(0.0,), std=(1.0,)), (1, 28, 28)),
    ],
)
def test_images_come_as_the_model_wants_them(tmp_path, preprocessing, shape):
    write_mnist(tmp_path)
    data = load("torch/fashion_mnist", tmp_path, preprocessing=preprocessing)
    assert data.input_shape == shape
    split = data.splits["train"]
    inputs = split.transform(split.dataset[0][0])
    assert inputs.shape == shape
    mean, std = (preprocessing.mean or (0.2860,))[0], (preprocessing.std or (0.3530,))[0]
    if shape == (1, 28, 28):
        pixels = FashionMNIST(str(tmp_path)).data[:1] / 255
        torch.testing.assert_close(inputs, (pixels - mean) / std)
    else:
        assert -1 <= inputs.min() < inputs.max() <= 1


@pytest.mark.parametrize("download", [True, False])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "all_missing"])
def test_missing_or_broken_files_are_named_or_fetched(
    tmp_path, site, monkeypatch, download, damage
):
    """torchvision by itself fetches missing files alone."""
    if damage != "all_missing":
        file = write_mnist(tmp_path, "MNIST") / "t10k-images-idx3-ubyte"
        content = file.read_bytes()[:-9] if damage == "truncated" else b""
        file.unlink() if damage == "missing" else file.write_bytes(content)
    packed = {f"{name}.gz": gzip.compress(data) for name, data in mnist_files().items()}
    site.files = {f"/{name}": content for name, content in packed.items()}
    sums = [(name, hashlib.md5(content).hexdigest()) for name, content in packed.items()]
    monkeypatch.setattr(MNIST, "mirrors", [f"{site.address}/"])
    monkeypatch.setattr(MNIST, "resources", sums)
    if download:
        data = load("torch/mnist", tmp_path, data_download=True)
        assert [len(split) for split in data.splits.values()] == list(MNIST_SIZES.values())
    else:
        with pytest.raises(
            UserError, match=r"timm/torch/mnist cannot be read.*MNIST/raw"
        ) as caught:
            load("torch/mnist", tmp_path)
        assert str(tmp_path) in str(caught.value)
        assert site.requests == []


@pytest.mark.parametrize("fault", ["refused", "silent"])
def test_a_dead_network_is_given_up_soon(tmp_path, site, monkeypatch, fault):
    monkeypatch.setattr("src.data.sources.fetch.NO_PROGRESS_SECONDS", 0.5)
    monkeypatch.setattr(MNIST, "mirrors", [f"{site.address}/"])
    monkeypatch.setattr(MNIST, "resources", [("train-images-idx3-ubyte.gz", "0")])
    site.files["/train-images-idx3-ubyte.gz"] = bytes(1000)
    site.stalls.set()
    if fault == "refused":
        site.shutdown()
        site.server_close()
    with pytest.raises(UserError, match="timm/torch/mnist could not be fetched") as caught:
        load("torch/mnist", tmp_path, data_download=True)
    assert "\n" not in str(caught.value)


def write_folder(root: Path, classes="ab", folders=("train", "val"), sizes=((20, 30), (40, 20))):
    for part in folders:
        for number, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for i in range(10):
                image = Image.new("RGB", sizes[i % len(sizes)], (50 * number, 0, i))
                image.save(root / part / name / f"{i}.png")


@pytest.mark.parametrize("second", ["val", "validation"])
def test_folders_of_images(tmp_path, second):
    write_folder(tmp_path / "pets", folders=("train", second))
    preprocessing = Preprocessing((3, 24, 24), mean=(0.0,), std=(1.0,))
    for place in ("pets", str(tmp_path / "pets")):
        splits_map = {"train": "train[:50%]", "rest": "train[50%:]", "val": "val"}
        data = load(f"folder/{place}", tmp_path, splits_map, preprocessing=preprocessing)
        assert (data.n_classes, data.input_shape) == (2, (3, 24, 24))
        seen = []
        for split in (data.splits["train"], data.splits["rest"]):
            assert len(split) == 10
            for image, label in (split.dataset[i] for i in range(10)):
                inputs = split.transform(image)
                assert inputs.shape == (3, 24, 24)
                assert round(float(inputs[0].mean()) * 255) == 50 * label
                seen.append((label, image.getpixel((0, 0))[2]))
        assert sorted(seen) == [(label, i) for label in (0, 1) for i in range(10)]
        assert {label for label, _ in seen[:10]} == {0, 1}  # a slice is not the first class


def test_folders_whose_images_differ_need_a_shape(tmp_path):
    write_folder(tmp_path / "pets")
    write_folder(tmp_path / "same", sizes=((30, 20),))
    with pytest.raises(UserError, match=r"model_input_shape: .*timm/folder/pets differ in size"):
        load("folder/pets", tmp_path, {"train": "train"})
    assert load("folder/same", tmp_path, {"train": "train"}).input_shape == (3, 20, 30)


def test_a_grey_image_among_coloured_ones_and_one_of_another_size_are_no_rule(tmp_path):
    write_folder(tmp_path / "pets", folders=("train", "test"), sizes=((30, 20),))
    for part in "train", "test":
        for number, path in enumerate(sorted((tmp_path / "pets" / part).rglob("*.png"))):
            if part == "test":
                Image.open(path).resize((12, 12)).save(path)
            elif number % 2:
                Image.open(path).convert("L").save(path)
    for splits_map in {"test": "test", "train": "train"}, {"train": "train[1:]", "test": "test"}:
        data = load("folder/pets", tmp_path, splits_map)
        assert data.input_shape == (3, 20, 30)
        for split in data.splits.values():
            assert split.transform(split.dataset[0][0]).shape == (3, 20, 30)


def test_a_folder_may_have_a_test_part_alone(tmp_path):
    write_folder(tmp_path / "pets", folders=("test",), sizes=((30, 20),))
    assert len(load("folder/pets", tmp_path, {"v2": "test"}).splits["v2"]) == 20


def test_bad_folders_are_explained(tmp_path):
    write_folder(tmp_path / "pets", folders=("train",), sizes=((30, 20),))
    write_folder(tmp_path / "pets", folders=("test",), classes="abc", sizes=((30, 20),))
    with pytest.raises(UserError, match=r"classes of train and test differ by \['c'\]"):
        load("folder/pets", tmp_path)
    with pytest.raises(UserError, match=r"has no 'val', there is: 'train', 'test'"):
        load("folder/pets", tmp_path, {"train": "train", "val": "val"})
    with pytest.raises(UserError, match=r"timm/folder/dogs has no folder train.*dogs"):
        load("folder/dogs", tmp_path)
    (tmp_path / "pets" / "train" / "empty").mkdir()
    with pytest.raises(UserError, match=r"cannot be read .*empty"):
        load("folder/pets", tmp_path, {"train": "train"})


def write_tar(file: Path, members: dict[str, bytes]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def images(classes: Iterable[str], number: int = 10) -> dict[str, bytes]:
    """CLASS/i.png -> an image whose red is 20 times the class, and whose blue is i."""
    found = {}
    for red, name in enumerate(classes):
        for i in range(number):
            file = io.BytesIO()
            Image.new("RGB", (6, 5), (20 * red, 0, i)).save(file, "PNG")
            found[f"{name}/{i}.png"] = file.getvalue()
    return found


CLASSES = ["c2", "c10", "d"]  # numbers in names count as such


def tars_of(layout: str, place: Path) -> None:
    """A part in each of the layouts that timm reads."""
    members = images(CLASSES)
    by_class = {c: {n: b for n, b in members.items() if n.startswith(f"{c}/")} for c in CLASSES}
    if layout == "one":
        write_tar(place.with_suffix(".tar"), {f"./x/{n}": b for n, b in members.items()})
    elif layout == "folders":
        write_tar(place / "first.tar", by_class["d"] | by_class["c2"])
        write_tar(place / "second.tar", by_class["c10"])
    else:
        for name, content in by_class.items():
            write_tar(place / f"{name}.tar", {Path(n).name: b for n, b in content.items()})
    if layout == "nested":
        inner = {f"{name}.tar": (place / f"{name}.tar").read_bytes() for name in CLASSES}
        shutil.rmtree(place)
        write_tar(place.with_suffix(".tar"), inner)


@pytest.mark.parametrize("layout", ["one", "folders", "classes", "nested"])
def test_tars_have_the_images_and_classes_that_timm_finds(tmp_path, layout):
    for part in ("train", "validation"):
        tars_of(layout, tmp_path / "pets" / part)
    splits_map = {"train": "train[:40%]", "rest": "train[40%:]", "val": "val"}
    data = load("tar/pets", tmp_path, splits_map)
    theirs = ReaderImageInTar(
        str(next(path for path in (tmp_path / "pets").iterdir() if path.stem == "train"))
    )
    expected = [(Image.open(image).getpixel((0, 0)), int(label)) for image, label in theirs]
    split = [data.splits[name].dataset for name in ("train", "rest")]
    found = [dataset[i] for dataset in split for i in range(len(dataset))]
    assert sorted((image.getpixel((0, 0)), label) for image, label in found) == sorted(expected)
    assert data.class_names == tuple(theirs.class_name_to_idx) == tuple(CLASSES)
    assert {type(label) for _, label in found} == {int}
    assert {label for _, label in found[:12]} == {0, 1, 2}  # a slice is not the first class
    assert (len(data.splits["val"]), data.input_shape) == (30, (3, 5, 6))


@pytest.mark.parametrize("layout", ["one", "nested"])
def test_workers_read_a_tar_at_once(tmp_path, layout):
    """As timm's reader does not, whose open file they would share."""
    tars_of(layout, tmp_path / "pets" / "train")
    dataset = load("tar/pets", tmp_path, {"train": "train"}).splits["train"].dataset
    expected = [example(dataset, i) for i in range(30)]
    again = pickle.loads(pickle.dumps(dataset))  # noqa: S301 - our own
    assert [example(again, i) for i in range(30)] == expected
    for num_workers in (1, 2):
        loader = DataLoader(dataset, batch_size=None, num_workers=num_workers, collate_fn=plain)
        for _ in range(3):
            assert list(loader) == expected


def example(dataset, index: int) -> tuple[bytes, int]:
    return plain(dataset[index])


def plain(pair) -> tuple[bytes, int]:
    return pair[0].tobytes(), pair[1]


def test_bad_tars_are_explained(tmp_path):
    write_tar(tmp_path / "pets" / "train.tar", images("ab"))
    write_tar(tmp_path / "pets" / "test.tar", images("abc"))
    with pytest.raises(UserError, match=r"classes of train and test differ by \['c'\]"):
        load("tar/pets", tmp_path)
    with pytest.raises(UserError, match="has no 'val', there is: 'train', 'test'"):
        load("tar/pets", tmp_path, {"train": "train", "val": "val"})
    with pytest.raises(UserError, match=r"timm/tar/dogs has no tar train; .*train.tar with CLASS"):
        load("tar/dogs", tmp_path)
    whole = (tmp_path / "pets" / "train.tar").read_bytes()
    for content, words in {
        whole[:3000]: "train.tar: unexpected end of data",
        gzip.compress(whole): "train.tar: ",
        b"": "train.tar: ",
        bytes(10240): "there are no images in .*train.tar",
    }.items():
        (tmp_path / "pets" / "train.tar").write_bytes(content)
        with pytest.raises(UserError, match=f"timm/tar/pets cannot be read .*{words}"):
            load("tar/pets", tmp_path, {"train": "train"})
    write_tar(tmp_path / "pets" / "train.tar", {"a.png": images("a")["a/0.png"]})
    with pytest.raises(UserError, match=r"a.png in .*train.tar is in no folder of a class"):
        load("tar/pets", tmp_path, {"train": "train"})


@pytest.mark.parametrize("name", ["wds/pets", "hfids/pets"])
def test_streams_are_refused_with_the_reason(tmp_path, name):
    with pytest.raises(UserError, match=f"'timm/{name}', expected timm/.* no exact order"):
        load(name, tmp_path)


@pytest.mark.parametrize("name", ["torch/cifar", "torch/image_folder", "tf/cifar10", "cifar10"])
def test_unknown_names_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="dataset: unknown"):
        load(name, tmp_path)


def test_a_disk_that_fails_deletes_nothing(tmp_path, monkeypatch):
    """A torn file is deleted, to be fetched again; not one that cannot be read just now."""
    from torchvision.datasets import mnist

    def read(path: str):
        raise OSError(5, "Input/output error") if "whole" in path else ValueError("torn")

    for name in ("a-torn-ubyte", "whole-ubyte"):
        (tmp_path / name).touch()
    monkeypatch.setattr(mnist, "read_sn3_pascalvincent_tensor", read)
    with pytest.raises(OSError):
        timm._delete_broken(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / "whole-ubyte").unlink()
    timm._delete_broken(tmp_path)
    assert not list(tmp_path.iterdir())
