"""hf/… on files of the real formats that are written here; the hub is test_hf_hub.py's."""

import multiprocessing
import pickle
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from PIL import Image

from src.config import make_config
from src.data.arrays import ArraySplit
from src.data.images import DatasetSplit
from src.data.registry import build_data, check_dataset
from src.data.source import Source
from src.data.sources.hf import open_parts
from src.data.splits import LoaderConfig, Preprocessing
from src.support.errors import UserError

datasets.disable_progress_bars()
RNG = np.random.default_rng(0)
ROWS = 40
BOTH = {"train": "train[:75%]", "test": "train[75%:]"}


def table(**extra) -> dict:
    """Columns: two of numbers, one of truth values, text classes in no order."""
    columns = {
        "height": RNG.normal(size=ROWS).round(3),
        "age": RNG.integers(0, 90, ROWS),
        "is_new": RNG.random(ROWS) < 0.5,
        "class": [["cat", "ant", "bee"][i % 3] for i in range(ROWS)],
    }
    return {key: list(value) for key, value in (columns | extra).items()}


def write(file: Path, columns: dict) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    made = Dataset.from_dict(columns)
    {
        ".csv": made.to_csv,
        ".json": made.to_json,
        ".parquet": made.to_parquet,
        ".tsv": lambda f: made.to_csv(f, sep="\t"),
    }[file.suffix](str(file))
    return file


def config(name: str, data_dir: Path, **keys):
    of_all = {"dataset": f"hf/{name}", "data_dir": str(data_dir), "data_download": False}
    of_all |= {"data_splits_map": BOTH, "seed_model": 1, "seed_training": 1}
    return make_config(of_all | keys)


def load(name: str, data_dir: Path, preprocessing: Preprocessing | None = None, **keys):
    return build_data(config(name, data_dir, **keys), preprocessing)


# ---- Names and places --------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["csv", "json", "parquet", "tsv"])
@pytest.mark.parametrize("is_absolute", [True, False])
def test_a_file_of_each_format_gives_the_same_rows(tmp_path, ending, is_absolute):
    columns = table()
    file = write(tmp_path / "deep" / f"pets.{ending}", columns)
    loader = "csv" if ending == "tsv" else ending
    data = load(f"{loader}:{file if is_absolute else f'deep/pets.{ending}'}", tmp_path)
    inputs = torch.cat([data.splits[split].inputs for split in ("train", "test")])
    expected = np.stack([columns[c] for c in ("height", "age", "is_new")], 1).astype(np.float32)
    torch.testing.assert_close(inputs, torch.from_numpy(expected))
    assert (data.input_shape, data.n_classes) == ((3,), 3)
    assert data.class_names == ("ant", "bee", "cat")
    assert data.splits["train"].targets[:3].tolist() == [2, 0, 1]
    assert [len(split) for split in data.splits.values()] == [30, 10]
    assert {path.name for path in tmp_path.iterdir()} <= {"deep", "hf"}


@pytest.mark.parametrize("name", ["csv:pets", "pets", "csv:{}/pets", "{}/pets"])
def test_a_folder_has_the_parts_that_its_files_are_named_for(tmp_path, name):
    write(tmp_path / "pets" / "train.csv", table())
    write(tmp_path / "pets" / "test.csv", table(age=[7] * ROWS))
    (tmp_path / "pets" / "README.txt").write_text("other files do not matter")
    splits = {"train": "train[:30]", "val": "train[30:]+test[:5]", "test": "test"}
    data = load(name.format(tmp_path), tmp_path, data_splits_map=splits)
    assert [len(split) for split in data.splits.values()] == [30, 15, ROWS]
    assert data.splits["val"].inputs[10:, 1].tolist() == [7] * 5
    with pytest.raises(UserError, match="has no 'dev', there is: 'train', 'test'"):
        load(name.format(tmp_path), tmp_path, data_splits_map={"train": "dev"})


def test_other_files_of_a_folder_without_names_of_parts_are_left_alone(tmp_path):
    write(tmp_path / "logs" / "monday.csv", table())
    write(tmp_path / "logs" / "sunday.csv", table())
    (tmp_path / "logs" / "NOTES.md").write_text("some, notes\n")
    assert len(load("csv:logs", tmp_path).splits["train"]) == 60
    assert len(load("csv:logs/s*.csv", tmp_path).splits["train"]) == 30
    assert len(load("csv:l*/[a-m]*.csv", tmp_path).splits["train"]) == 30
    with pytest.raises(UserError, match=r"hf/parquet:logs has no files; .*\*.parquet in .*logs"):
        load("parquet:logs", tmp_path)


@pytest.mark.parametrize("is_dict", [True, False])
def test_what_save_to_disk_wrote_is_read(tmp_path, is_dict):
    made = Dataset.from_dict(table()).with_format("torch")
    (DatasetDict(train=made, dev=made) if is_dict else made).save_to_disk(tmp_path / "saved")
    splits = {"train": "train", "test": "dev"} if is_dict else BOTH
    data = load("saved", tmp_path, data_splits_map=splits)
    assert [len(split) for split in data.splits.values()] == ([40, 40] if is_dict else [30, 10])


def test_splits_may_come_from_other_files(tmp_path):
    file = write(tmp_path / "a.csv", table())
    write(tmp_path / "[b].csv", table() | {"class": ["bee"] * ROWS})
    splits = {"train": f"hf/csv:{file}:train[:20]", "rest": "train[20:]"}
    splits |= {"other": "hf/csv:[[]b].csv:train[5:]"}
    data = load(f"csv:{file}", tmp_path, data_splits_map=splits)
    assert [len(split) for split in data.splits.values()] == [20, 20, 35]
    assert set(data.splits["other"].targets.tolist()) == {1}  # our number of bee


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("csv:", {}, r"dataset: got 'hf/csv:', expected hf/csv:PATH"),
        ("csv", {}, r"expected hf/csv:PATH"),
        ("", {}, r"expected hf/NAME, hf/PATH, hf/csv\|json\|parquet\|text\|imagefolder:PATH"),
        ("csv:x.csv", {"data_version": "main"}, "data_version: got 'main', expected null, as fil"),
        ("x/y", {"data_splits_map": {"train": "train[0]"}}, r"cannot read 'train\[0\]'"),
    ],
)
def test_mistakes_show_before_there_are_data(tmp_path, name, keys, message):
    with pytest.raises(UserError, match=message):
        check_dataset(config(name, tmp_path, **keys))


def test_checking_a_name_is_quick_and_asks_nobody():
    script = (
        "import sys, src.data.registry as b; from src.config import make_config\n"
        "for name in ('csv:x.csv', 'imdb', 'nyu-mll/glue:mrpc', '/somewhere'):\n"
        "    b.check_dataset(make_config({'dataset': f'hf/{name}'}))\n"
        "print({'datasets', 'huggingface_hub', 'transformers', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("csv:nowhere.csv", r"hf/csv:nowhere.csv is not there; .* nowhere.csv in the folder {}"),
        ("csv:no*.csv", r"hf/csv:no\*.csv is not there"),
        ("imagefolder:nowhere", r"hf/imagefolder:nowhere is not there"),
        ("/no/such/folder", r"a name of the hub, hf/OWNER/NAME, or a folder; there is no /no/such"),
        ("csv:empty.csv", r"hf/csv:empty.csv cannot be read \(.*"),
        ("json:broken.json", r"hf/json:broken.json cannot be read \(.*"),
        ("parquet:broken.json", r"hf/parquet:broken.json cannot be read \(.*"),
    ],
)
def test_what_cannot_be_read_is_reported_in_a_line(tmp_path, name, message):
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "broken.json").write_text('{"a": 1}\n{"a')
    with pytest.raises(UserError, match=message.format(tmp_path)) as caught:
        load(name, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_changed_file_is_read_again(tmp_path):
    file = write(tmp_path / "pets.csv", table(age=[1] * ROWS))
    assert set(load("csv:pets.csv", tmp_path).splits["train"].inputs[:, 1].tolist()) == {1}
    time.sleep(0.01)
    write(file, table(age=[2] * ROWS))
    assert set(load("csv:pets.csv", tmp_path).splits["train"].inputs[:, 1].tolist()) == {2}


def test_two_processes_read_one_file_at_the_same_time(tmp_path):
    n = 100_000
    write(tmp_path / "big.csv", {"x": list(range(n)), "label": [i % 2 for i in range(n)]})
    context = multiprocessing.get_context("fork")
    barrier, sizes = context.Barrier(2), context.SimpleQueue()

    def child() -> None:
        barrier.wait()
        source = Source("hf/csv:big.csv", {"train": "train"})
        parts, _ = open_parts(config("csv:big.csv", tmp_path), source)
        sizes.put(len(parts["train"]))

    processes = [context.Process(target=child) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [sizes.get(), sizes.get()] == [n, n]
    assert len(list((tmp_path / "hf").rglob("*.arrow"))) == 1


# ---- Rows --------------------------------------------------------------------------------


def test_columns_are_chosen_and_normalised(tmp_path):
    columns = table(price=(10 * RNG.random(ROWS)).round(2), embedding=RNG.random((ROWS, 4)))
    write(tmp_path / "pets.parquet", columns | {"name": ["x"] * ROWS})
    keys = {"data_input_columns": ["embedding", "age"], "data_target_column": "price"}
    data = load("parquet:pets.parquet", tmp_path, data_normalize="columns", loss="mse", **keys)
    split = data.splits["train"]
    assert (data.input_shape, data.n_classes, data.class_names) == ((5,), None, None)
    assert (split.inputs.dtype, split.targets.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(split.targets.double(), torch.tensor(columns["price"][:30]))
    torch.testing.assert_close(split.inputs.mean(0), torch.zeros(5), atol=1e-6, rtol=0)
    ages = torch.tensor(columns["age"][:30]).double()
    expected = (ages - ages.mean()) / ages.std(correction=0)
    torch.testing.assert_close(split.inputs[:, 4].double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("labels", "names", "first"),
    [
        ([0, 1, 2], ("0", "1", "2"), [0, 1, 2]),
        ([-1, 1, -1], ("-1", "1"), [0, 1, 0]),
        ([7, 3, 10], ("3", "7", "10"), [1, 0, 2]),  # as numbers, not as texts
        ([True, False, True], ("False", "True"), [1, 0, 1]),
        (["b", "a", "B"], ("B", "a", "b"), [2, 1, 0]),
    ],
)
def test_classes_are_numbered_in_their_order(tmp_path, labels, names, first):
    columns = {"x": list(range(30)), "labels": labels * 10}
    write(tmp_path / "t.parquet", columns)
    data = load("parquet:t.parquet", tmp_path, data_splits_map={"train": "train"})
    assert (data.class_names, data.n_classes) == (names, len(names))
    assert data.splits["train"].targets[:3].tolist() == first


def test_classes_of_all_parts_used_count(tmp_path):
    write(tmp_path / "t" / "train.csv", {"x": [1, 2, 3], "y": ["b", "c", "b"]})
    write(tmp_path / "t" / "test.csv", {"x": [1, 2], "y": ["a", "c"]})
    both = load("t", tmp_path, data_splits_map={"train": "train", "test": "test"})
    assert both.class_names == ("a", "b", "c")
    assert both.splits["train"].targets.tolist() == [1, 2, 1]
    assert load("t", tmp_path, data_splits_map={"train": "train"}).class_names == ("b", "c")


def test_the_target_is_the_first_of_the_usual_names(tmp_path):
    columns = {"y": [1.5, 2.5], "class": [0, 1], "x": [1, 2]}
    write(tmp_path / "t.csv", columns)
    data = load("csv:t.csv", tmp_path, data_splits_map={"train": "train"})
    assert (data.n_classes, data.input_shape) == (2, (2,))  # class is it, y an input


def test_a_part_sorted_by_class_is_shuffled_in_one_way(tmp_path, log_lines):
    columns = {"x": list(range(ROWS)), "label": [0] * 20 + [1] * 20}
    write(tmp_path / "t.csv", columns)
    data = load("csv:t.csv", tmp_path)
    for split in data.splits.values():
        assert set(split.targets.tolist()) == {0, 1}
        torch.testing.assert_close(split.targets, (split.inputs[:, 0] >= 20).long())
    assert any("hf/csv:t.csv: train is sorted by class" in line for line in log_lines)
    again = load("csv:t.csv", tmp_path)
    assert torch.equal(again.splits["test"].inputs, data.splits["test"].inputs)
    write(tmp_path / "u.csv", columns | {"label": [0] * 19 + [1] * 20 + [0]})
    as_it_is = load("csv:u.csv", tmp_path).splits["train"].inputs[:, 0]
    assert as_it_is.tolist() == list(range(30))


@pytest.mark.parametrize(
    ("columns", "keys", "message"),
    [
        ({"name": ["a"] * ROWS}, {}, r"no numbers: 'name' \(text\); list those to take, or for te"),
        ({}, {"data_input_columns": ["hieght"]}, "data_input_columns: unknown 'hieght'; did you m"),
        ({}, {"data_input_columns": ["age", "age"]}, "one or more, each once, of height, age, is_"),
        ({}, {"data_input_columns": ["class"]}, "data_input_columns: got .*'class'.*each once"),
        ({}, {"data_target_column": "klass"}, "data_target_column: unknown 'klass'; did you mean"),
        ({"age": [None, *range(ROWS - 1)]}, {}, "1 of 40 values of column 'age' are missing in tr"),
        ({"class": [None, *"ab" * 19, "a"]}, {}, "1 of 40 values of column 'class' are missing in"),
        ({"height": [float("nan")] * ROWS}, {}, "40 of 40 values of column 'height' are missing"),
        ({}, {"data_mean": [0.5], "data_std": [0.5]}, "data_mean, data_std: for images alone"),
        ({}, {"loss": "next_token"}, "data_tokenizer: got None, expected a tokenizer, as loss is"),
        ({}, {"model_input_shape": [4]}, r"model_input_shape: got \[4\], expected \[3\]"),
        ({"ids": [[1, 2]] * 39 + [[1]]}, {}, "whose lists have one length and no gaps; 'ids'"),
        ({"class": [[1]] * ROWS}, {}, "a column of classes or numbers; this one holds list"),
    ],
)
def test_tables_that_cannot_be_used_are_explained(tmp_path, columns, keys, message):
    write(tmp_path / "t.parquet", table(**columns))
    with pytest.raises(UserError, match=message) as caught:
        load("parquet:t.parquet", tmp_path, **keys)
    assert "\n" not in str(caught.value)


def test_a_table_without_a_usual_target_lists_its_columns(tmp_path):
    write(tmp_path / "t.csv", {"a": [1, 2] * 9, "b": [3, 4] * 9})
    expected = "data_target_column: got None, expected one of the columns a, b, as none is called l"
    with pytest.raises(UserError, match=expected):
        load("csv:t.csv", tmp_path)


def with_secret_labels(train: list, test: list, feature) -> DatasetDict:
    features = Features({"x": Value("float32"), "label": feature})
    made = {"train": train, "test": test}
    return DatasetDict(
        {
            part: Dataset.from_dict({"x": range(len(y)), "label": y}, features=features)
            for part, y in made.items()
        }
    )


@pytest.mark.parametrize("feature", [ClassLabel(names=["no", "yes"]), Value("int64")])
def test_parts_whose_labels_are_secret_are_refused(tmp_path, feature):
    with_secret_labels([0, 1, 0], [-1, -1], feature).save_to_disk(tmp_path / "s")
    splits = {"train": "train", "test": "test"}
    with pytest.raises(UserError, match=r"2 of 2 examples of test have no label \(-1\)"):
        load("s", tmp_path, data_splits_map=splits)
    data = load("s", tmp_path, data_splits_map={"train": "train"})
    assert data.class_names == (("no", "yes") if hasattr(feature, "names") else ("0", "1"))
    with_secret_labels([-1, 1, 1], [1, -1], Value("int64")).save_to_disk(tmp_path / "t")
    assert load("t", tmp_path, data_splits_map=splits).n_classes == 2


# ---- Images ------------------------------------------------------------------------------


def write_images(root: Path, classes=("ant", "bee"), mode="RGB") -> None:
    """Ten images a class: of the class's colour, the first pixel of the image's own."""
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(10):
            image = Image.new("L", (12, 10), 100 * number + 50).convert(mode)
            image.putpixel((0, 0), i if mode == "L" else (i, i, i))
            image.save(root / name / f"{i}.png")


def parquet_of_images(folder: Path) -> None:
    found = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(folder / "c"))
    found["train"].to_parquet(folder / "all.parquet")


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("name", ["imagefolder:pets", "pets", "parquet:pets/all.parquet"])
def test_images_come_lazily_shuffled_and_as_the_model_wants_them(tmp_path, mode, name):
    write_images(tmp_path / "pets", mode=mode)
    if name.startswith("parquet"):
        parquet_of_images(tmp_path / "pets")
    data = load(name, tmp_path, data_normalize="none")
    channels = 1 if mode == "L" else 3
    assert (data.class_names, data.input_shape) == (("ant", "bee"), (channels, 10, 12))
    seen = []
    for split in data.splits.values():
        assert isinstance(split, DatasetSplit)
        for image, label in (split.dataset[i] for i in range(len(split))):
            assert type(label) is int
            pixels = split.transform(image)
            assert pixels.shape == (channels, 10, 12)
            assert round(float(pixels[0, 5, 5]) * 255) == 100 * label + 50
            seen.append((label, round(float(pixels[0, 0, 0]) * 255)))
    assert sorted(seen) == [(label, i) for label in (0, 1) for i in range(10)]
    assert {label for label, _ in seen[:15]} == {label for label, _ in seen[15:]} == {0, 1}


def test_folders_of_parts_and_images_of_other_sizes(tmp_path):
    write_images(tmp_path / "pets" / "train")
    write_images(tmp_path / "pets" / "test", classes=("ant", "bee"))
    Image.new("RGB", (30, 30)).save(tmp_path / "pets" / "train" / "ant" / "large.png")
    splits = {"train": "train", "test": "test"}
    keys = {"data_splits_map": splits, "model_input_shape": [3, 8, 8]}
    data = load("imagefolder:pets", tmp_path, **keys)
    assert [len(split) for split in data.splits.values()] == [21, 20]
    shapes = {
        split.transform(split.dataset[i][0]).shape
        for split in data.splits.values()
        for i in range(len(split))
    }
    assert shapes == {(3, 8, 8)}
    with pytest.raises(UserError, match="data_normalize: got 'rows', expected null"):
        load("imagefolder:pets", tmp_path, data_normalize="rows", **keys)


def test_workers_read_the_same_images(tmp_path):
    write_images(tmp_path / "pets")
    split = load("pets", tmp_path).splits["train"]
    split = pickle.loads(pickle.dumps(split))  # noqa: S301 - as workers get it

    def batches(num_workers: int) -> list:
        loading = LoaderConfig(4, torch.device("cpu"), num_workers)
        made = split.training_batches(loading, seed=0, steps_per_pass=4)
        found = list(islice(made, 6))
        made.close()
        return found

    expected = batches(0)
    for num_workers in (1, 2):
        for ours, theirs in zip(batches(num_workers), expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_timm_s_name_for_the_hub_leads_here(tmp_path, log_lines):
    write(tmp_path / "pets.csv", table())
    name = f"timm/hfds/csv:{tmp_path / 'pets.csv'}"
    data = build_data(config("", tmp_path, dataset=name), None)
    assert isinstance(data.splits["train"], ArraySplit)
    assert any("timm/hfds/csv" in line and "is read as hf/csv" in line for line in log_lines)
    with pytest.raises(UserError, match="expected hf/csv:PATH"):
        check_dataset(config("", tmp_path, dataset="timm/hfds/csv:"))
