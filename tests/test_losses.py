"""Losses against torch's own functions, and sums that add up over unequal micro-batches."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from src.config import Config
from src.data import NO_TOKEN
from src.losses import build_loss, check_cut
from src.support.errors import UserError

N, C = 7, 3
WEIGHTS = torch.tensor([0.5, 2.0, 1.25])


@pytest.fixture
def batch():
    """Outputs (N, C), class numbers (N,), several labels (N, C), real targets (N, C)."""
    g = torch.Generator().manual_seed(0)
    outputs = torch.randn(N, C, generator=g)
    classes = torch.randint(C, (N,), generator=g)
    labels = torch.randint(2, (N, C), generator=g).float()
    return outputs, classes, labels, torch.randn(N, C, generator=g)


def mixed(classes):
    """(N, C) shares: each example's class by 0.7, its partner's by 0.3."""
    one_hot = F.one_hot(classes, C).float()
    return 0.7 * one_hot + 0.3 * one_hot.flip(0)


def mean_of(loss, outputs, targets):
    return loss(outputs, targets) / loss.normalizer(targets)


@pytest.mark.parametrize("name", ["log", "xentropy"])
@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_log_is_the_cross_entropy_of_torch(batch, name, class_weights, label_smoothing):
    outputs, classes, _, _ = batch
    loss = build_loss(
        name, n_classes=C, label_smoothing=label_smoothing, class_weights=class_weights
    )
    expected = F.cross_entropy(
        outputs, classes, weight=class_weights, label_smoothing=label_smoothing
    )
    torch.testing.assert_close(mean_of(loss, outputs, classes), expected)


def test_small_weights_of_classes_are_weights_as_large_ones(batch):
    outputs, classes, _, _ = batch
    small, large = (build_loss("log", n_classes=C, class_weights=WEIGHTS * f) for f in (1e-4, 1.0))
    torch.testing.assert_close(mean_of(small, outputs, classes), mean_of(large, outputs, classes))


def test_next_tokens_count_each_by_itself_and_what_is_behind_a_text_not_at_all(batch):
    loss = build_loss("next_token", n_classes=C, is_text_alone=True)
    outputs = torch.stack([batch[0], -batch[0]])  # (2, N, C): texts of N tokens
    targets = torch.stack([batch[1], batch[1]])
    targets[1, 3:] = NO_TOKEN
    kept = targets != NO_TOKEN
    expected = F.cross_entropy(outputs[kept], targets[kept])
    torch.testing.assert_close(mean_of(loss, outputs, targets), expected)
    assert loss.num_predictions(targets) == N + 3
    hits = (outputs.argmax(-1)[kept] == targets[kept]).sum()
    assert loss.correct(outputs, targets) == hits


def test_a_batch_of_classes_that_count_for_nothing_moves_nothing():
    loss = build_loss("log", n_classes=2, class_weights=[0.0, 1.0])
    outputs, classes = torch.randn(3, 2, requires_grad=True), torch.zeros(3, dtype=torch.int64)
    (loss(outputs, classes) / loss.normalizer(classes)).backward()
    assert torch.equal(outputs.grad, torch.zeros(3, 2))


@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_shares_of_classes_are_those_of_torch(batch, class_weights, label_smoothing):
    """As a sum; torch's mean over shares forgets the classes' weights in what it divides by."""
    outputs, classes, _, _ = batch
    keys = {"label_smoothing": label_smoothing}
    loss = build_loss("log", n_classes=C, class_weights=class_weights, **keys)
    shares = mixed(classes)
    keys |= {"weight": class_weights}
    expected = F.cross_entropy(outputs, shares, reduction="sum", **keys)
    torch.testing.assert_close(loss(outputs, shares), expected)
    # as mixed as the examples are
    ours, theirs = loss(outputs, classes), loss(outputs, classes.flip(0))
    torch.testing.assert_close(loss(outputs, shares), 0.7 * ours + 0.3 * theirs)
    assert float(loss.normalizer(shares)) == pytest.approx(float(loss.normalizer(classes)))
    whole = F.one_hot(classes, C).float()
    expected = F.cross_entropy(outputs, classes, **keys)
    torch.testing.assert_close(mean_of(loss, outputs, whole), expected)


def test_of_shares_of_classes_the_largest_one_is_right():
    outputs = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    shares = torch.tensor([[0.4, 0.6], [0.4, 0.6], [0.1, 0.9]])
    correct = build_loss("log", n_classes=2).correct(outputs, shares)
    assert (correct.item(), correct.dtype) == (2, torch.int64)


@pytest.mark.parametrize("name", ["mse", "square"])
def test_mse_of_classes_is_the_mean_distance_to_one_hot(batch, name):
    outputs, classes, _, _ = batch
    one_hot = torch.eye(C)[classes]
    loss = build_loss(name, n_classes=C)
    torch.testing.assert_close(mean_of(loss, outputs, classes), F.mse_loss(outputs, one_hot))


@pytest.mark.parametrize(("k", "flat"), [(1, True), (1, False), (C, False)])
def test_mse_of_real_targets(batch, k, flat):
    outputs, _, _, targets = (t[:, :k] if t.ndim == 2 else t for t in batch)
    loss = build_loss("mse", n_classes=None)
    given = targets.squeeze(1) if flat else targets
    torch.testing.assert_close(mean_of(loss, outputs, given), F.mse_loss(outputs, targets))
    assert loss.metric_names == ("loss",)
    assert loss.correct(outputs, given) is None


def test_bce_is_torchs_mean_over_labels_and_counts_rows_without_fault():
    outputs = torch.tensor([[1.0, -1.0], [1.0, 1.0], [-3.0, 2.0], [-1.0, -1.0]])
    labels = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    loss = build_loss("bce", n_classes=2, is_multilabel=True)
    expected = F.binary_cross_entropy_with_logits(outputs, labels)
    torch.testing.assert_close(mean_of(loss, outputs, labels), expected)
    assert loss.correct(outputs, labels).item() == 2


@pytest.mark.parametrize("name", ["log", "mse"])
def test_correct_counts_the_largest_outputs(name):
    outputs = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    correct = build_loss(name, n_classes=2).correct(outputs, torch.tensor([1, 1, 1]))
    assert correct.item() == 2
    assert correct.dtype == torch.int64


CASES = {
    "log": ({"n_classes": C}, 1),
    "log smoothed and weighted": (
        {"n_classes": C, "label_smoothing": 0.1, "class_weights": WEIGHTS},
        1,
    ),
    "log of shares": ({"n_classes": C, "label_smoothing": 0.1, "class_weights": WEIGHTS}, 1),
    "bce": ({"n_classes": C, "is_multilabel": True}, 2),
    "mse": ({"n_classes": C}, 1),
    "mse of real targets": ({"n_classes": None}, 3),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_micro_batches_add_up_to_the_gradient_of_the_large_batch(batch, case, size):
    """The last one is shorter where size does not divide N."""
    keywords, which = CASES[case]
    outputs, targets = batch[0].clone().requires_grad_(), batch[which]
    targets = mixed(targets) if "shares" in case else targets
    loss = build_loss(case.split()[0], **keywords)
    (whole,) = torch.autograd.grad(mean_of(loss, outputs, targets), outputs)
    weight = loss.normalizer(targets)
    for part, part_targets in zip(outputs.split(size), targets.split(size), strict=True):
        (loss(part, part_targets) / weight).backward()
    torch.testing.assert_close(outputs.grad, whole)


def test_without_class_weights_the_normalizer_is_no_tensor(batch):
    assert build_loss("log", n_classes=C).normalizer(batch[1]) == N
    assert isinstance(build_loss("log", n_classes=C).normalizer(batch[1]), int)


def test_outputs_that_do_not_fit_real_targets_raise_rather_than_broadcast():
    with pytest.raises(UserError, match=r"\(4, 2\) outputs for \(4,\) targets"):
        build_loss("mse", n_classes=None)(torch.zeros(4, 2), torch.zeros(4))


@pytest.mark.parametrize(
    ("name", "keywords", "message"),
    [
        ("mes", {"n_classes": C}, "loss: unknown 'mes'; did you mean 'mse'"),
        ("log", {"n_classes": None}, "loss: got 'log', expected 'mse'"),
        ("bce", {"n_classes": None}, "loss: got 'bce', expected 'mse'"),
        ("bce", {"n_classes": C}, "expected 'log' or 'mse'"),
        ("log", {"n_classes": C, "is_multilabel": True}, "expected 'bce'"),
        ("mse", {"n_classes": C, "is_multilabel": True}, "expected 'bce'"),
        ("mse", {"n_classes": C, "label_smoothing": 0.1}, "label_smoothing: got 0.1"),
        ("mse", {"n_classes": C, "class_weights": WEIGHTS}, "loss_class_weights: got"),
        ("log", {"n_classes": 2, "class_weights": WEIGHTS}, "expected 2 numbers"),
    ],
)
def test_combinations_without_a_meaning_are_refused(name, keywords, message):
    with pytest.raises(UserError, match=message):
        build_loss(name, **keywords)


def test_a_loss_of_ones_own_is_made_as_those_of_the_table_are(batch):
    keys = {"n_classes": C, "label_smoothing": 0.1, "class_weights": WEIGHTS}
    own, plain = (build_loss(name, **keys) for name in ("src.losses:CrossEntropy", "log"))
    assert type(own) is type(plain)
    assert torch.equal(mean_of(own, *batch[:2]), mean_of(plain, *batch[:2]))
    focal = build_loss("tests.own_parts:Focal", n_classes=C, label_smoothing=0.1)
    assert focal.label_smoothing == 0.1
    assert focal(*batch[:2]) < build_loss("log", n_classes=C, label_smoothing=0.1)(*batch[:2])


def test_a_loss_takes_arguments_and_may_take_any_targets(batch):
    sharp, mild = (
        build_loss("tests.own_parts:Focal", n_classes=C, loss_args={"power": power})
        for power in (4.0, 1.0)
    )
    assert sharp(*batch[:2]) < mild(*batch[:2])
    build_loss("tests.own_parts:Noisy", n_classes=C)
    build_loss("tests.own_parts:SmallOutputs", n_classes=None)
    build_loss("tests.own_parts:SmallOutputs", n_classes=C, is_multilabel=True)


@pytest.mark.parametrize(
    ("function", "keywords", "message"),
    [
        ("Focal", {"loss_args": {"powr": 2}}, "loss_args: unknown 'powr'; did you mean 'power'"),
        ("Focal", {"loss_args": {"label_smoothing": 0.1}}, "loss_args: unknown 'label_smoothing'"),
        ("Focla", {}, "tests.own_parts has no function 'Focla'; did you mean '.*:Focal'"),
        ("of_three", {}, "takes of n_classes, label_smoothing, .* and nothing else: .*'one'"),
        ("nothing", {}, "a subclass of Loss of src/losses.py, or .*; not NoneType"),
        ("Focal", {"class_weights": WEIGHTS}, "expected null, as loss tests.own_parts:Focal takes"),
        (
            "Contrastive",
            {"label_smoothing": 0.1},
            "expected 0, as loss tests.own_parts:Contrastive",
        ),
        ("MeanOfBatch", {}, "expected one that gives the sum .*; this gives a mean"),
        ("Unreduced", {}, r"this gives a tensor of shape \(4,\)"),
        ("HiddenPairs", {}, "this gives no sum .*is_sum_over_examples = False"),
        ("Focal", {"n_classes": None}, "'mse', as the targets are real .*; this one takes classes"),
        ("Focal", {"is_multilabel": True}, "'bce', as an example has several labels; this one"),
    ],
)
def test_what_is_no_loss_for_the_data_is_reported(function, keywords, message):
    with pytest.raises(UserError, match=message):
        build_loss(f"tests.own_parts:{function}", **({"n_classes": C} | keywords))


def test_a_loss_of_pairs_is_refused_where_batches_are_cut(batch):
    """And rightly so: its gradient of the parts is not that of the batch."""
    config = Config(loss="tests.own_parts:Contrastive", grad_accum_steps=2)
    loss = build_loss(config.loss, n_classes=C)
    outputs, classes, *_ = batch
    parts = zip(outputs.split(4), classes.split(4), strict=True)
    assert not torch.allclose(loss(outputs, classes), sum(loss(*p) for p in parts), rtol=0.1)
    with pytest.raises(UserError, match="grad_accum_steps: got 2, expected 1, as loss"):
        check_cut(loss, config)
    with pytest.raises(UserError, match=r"loss: .*, expected another one for 2 processes"):
        check_cut(loss, replace(config, grad_accum_steps=1), num_processes=2)
    check_cut(loss, replace(config, grad_accum_steps=1))
    check_cut(build_loss("log", n_classes=C), config, num_processes=2)
