"""The numbers of stacks: formulas against autograd and torch's optimizers, and bits that do not
depend on the stack."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.losses import BinaryCrossEntropy, ClassSquaredError, CrossEntropy, SquaredError
from src.stacking.linear import aligned, gradients_of, outputs_of, stack_losses, vector
from src.stacking.optimizers import stack_optimizers, stacked
from src.support import random_state


def parameters_of(num_rows: int, n_outputs: int, num_features: int) -> list[torch.Tensor]:
    return [torch.randn(num_rows, n_outputs, num_features), torch.randn(num_rows, n_outputs, 1)]


def targets_of(kind: str, number: int, n_outputs: int) -> torch.Tensor:
    return {
        "classes": torch.randint(n_outputs, (number,)),
        "probabilities": torch.rand(number, n_outputs).softmax(1),
        "numbers": torch.randn(number, n_outputs),
        "labels": torch.randint(2, (number, n_outputs)).float(),
    }[kind]


LOSSES = {
    "plain": (lambda s: CrossEntropy(), "classes"),
    "smooth": (lambda s: CrossEntropy(label_smoothing=s), "classes"),
    "weighted": (lambda s: CrossEntropy(s, torch.tensor([1.0, 0.5, 3.0])), "classes"),
    "mixed": (lambda s: CrossEntropy(label_smoothing=s), "probabilities"),
    "one-hot": (lambda s: ClassSquaredError(), "classes"),
    "real": (lambda s: SquaredError(), "numbers"),
    "labels": (lambda s: BinaryCrossEntropy(), "labels"),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_losses_and_gradients_are_those_of_the_ordinary_losses(kind):
    torch.manual_seed(0)
    make, of_targets = LOSSES[kind]
    rows = [make(smoothing) for smoothing in (0.0, 0.1, 0.3, 0.0)]
    outputs, targets = 3 * torch.randn(4, 3, 50), targets_of(of_targets, 50, 3)
    loss = stack_losses(rows, outputs.device)
    found, correct, gradients = loss(outputs.clone(), targets, wants_gradient=True)
    again = loss(outputs.clone(), targets, wants_gradient=False)
    assert again[2] is None
    torch.testing.assert_close(again[0], found, rtol=0, atol=0)
    for row, ordinary in enumerate(rows):
        own = outputs[row].t().contiguous().requires_grad_()
        expected = ordinary(own, targets)
        expected.backward()
        torch.testing.assert_close(found[row], expected.detach())
        torch.testing.assert_close(gradients[row].t(), own.grad, rtol=1e-4, atol=1e-6)
        expected_correct = ordinary.correct(own, targets)
        assert (correct is None) == (expected_correct is None)
        assert correct is None or correct[row] == expected_correct


def test_equal_outputs_are_judged_as_argmax_does():
    targets = torch.randint(5, (200,))
    outputs = torch.randint(2, (3, 5, 200)).float()
    _, correct, _ = stack_losses([CrossEntropy()] * 3, outputs.device)(
        outputs.clone(), targets, wants_gradient=False
    )
    assert correct.tolist() == [(x.argmax(0) == targets).sum().item() for x in outputs]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", LOSSES)
@settings(max_examples=15)
@given(
    shape=st.tuples(st.integers(2, 9), st.integers(1, 70), st.integers(1, 300)),
    seed=st.integers(0, 2**31),
)
def test_a_rows_bits_do_not_depend_on_the_stack(kind, threads, shape, seed):
    """Of three steps with SGD or Adam; NaN in one row."""
    n_outputs, num_features, number = shape
    make, of_targets = LOSSES[kind]
    n_outputs = 3 if kind == "weighted" else n_outputs
    torch.set_num_threads(threads)
    try:
        with random_state.isolate_rng():
            torch.manual_seed(seed)
            weights = parameters_of(9, n_outputs, num_features)
            weights[0][4] = torch.nan
            inputs = torch.randn(number, num_features)
            targets = targets_of(of_targets, number, n_outputs)
            smoothing = [0.0, 0.1, 0.0, 0.2, 0.0, 0.1, 0.3, 0.0, 0.1]
            rates = torch.linspace(0.01, 1, 9, dtype=torch.float64)
        whole = trained(range(9), weights, inputs, targets, make, smoothing, rates, seed % 2)
        for rows in ([0, 0], [8, 1], [1, 2, 5, 7], [7, 4, 3, 2, 6, 0, 8]):
            part = trained(rows, weights, inputs, targets, make, smoothing, rates, seed % 2)
            for own, of_all in zip(part, whole, strict=True):
                for place, row in enumerate(rows):
                    assert own[place].numpy().tobytes() == of_all[row].numpy().tobytes()
    finally:
        torch.set_num_threads(1)


def trained(rows, weights, inputs, targets, make, smoothing, rates, is_adam):
    """Weights, and the losses and numbers of correct predictions of each step."""
    rows = list(rows)
    parameters = [aligned(*x[rows].shape, x.device).copy_(x[rows]) for x in weights]
    originals = [
        [
            torch.nn.Parameter(torch.zeros(inputs.shape[1], len(x[0]))),
            torch.nn.Parameter(torch.zeros(len(x[0]))),
        ]
        for x in parameters[:1] * len(rows)
    ]
    kinds = [
        torch.optim.Adam(own, lr=1, betas=(0.9, 0.99), weight_decay=0.01)
        if is_adam
        else torch.optim.SGD(
            own, lr=1, momentum=0.1 * row, nesterov=row > 0, weight_decay=0.01 * row
        )
        for row, own in zip(rows, originals, strict=True)
    ]
    optimizer = stack_optimizers(kinds, originals)
    loss, found = stack_losses([make(smoothing[row]) for row in rows], inputs.device), []
    for step in range(1, 4):
        outputs = outputs_of(parameters, inputs)
        losses, correct, of_outputs = loss(outputs, targets, wants_gradient=True)
        gradients = gradients_of(parameters, of_outputs.mul_(1 / len(targets)), inputs)
        optimizer.step(parameters, gradients, rates[rows][:, None, None], step)
        found += [losses, *([] if correct is None else [correct])]
    return [*parameters, *found]


OPTIMIZERS = {
    "sgd": lambda p, m, d: torch.optim.SGD(p, lr=1, momentum=m, nesterov=m > 0, weight_decay=d),
    "adam": lambda p, m, d: torch.optim.Adam(p, lr=1, betas=(m, 0.99), weight_decay=d),
    "adamw": lambda p, m, d: torch.optim.AdamW(p, lr=1, betas=(m, 0.99), weight_decay=d),
    "amsgrad": lambda p, m, d: torch.optim.Adam(
        p, lr=1, betas=(m, 0.99), weight_decay=d, amsgrad=True
    ),
    "amsgradw": lambda p, m, d: torch.optim.AdamW(
        p, lr=1, betas=(m, 0.99), weight_decay=d, amsgrad=True
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_do_what_torchs_do_and_continue_each_other(name):
    """Two steps by torch, two in the stack, two by torch: as six of torch."""
    torch.manual_seed(1)
    settings_of_rows = list(itertools.product((0.0, 0.9), (0.0, 0.1)))
    rates = torch.tensor([0.01, 0.1, 0.03, 0.2], dtype=torch.float64)
    starts = [[torch.randn(5, 3), torch.randn(3)] for _ in settings_of_rows]
    noise = [[[torch.randn_like(x) for x in row] for row in starts] for _ in range(6)]

    def made() -> list:
        own = [[torch.nn.Parameter(x.clone()) for x in row] for row in starts]
        kinds = zip(own, settings_of_rows, strict=True)
        return [(row, OPTIMIZERS[name](row, *setting)) for row, setting in kinds]

    def by_torch(rows, steps) -> None:
        for step in steps:
            for number, (own, optimizer) in enumerate(rows):
                for parameter, gradient in zip(own, noise[step][number], strict=True):
                    parameter.grad = gradient.clone()
                optimizer.param_groups[0]["lr"] = rates[number].item()
                optimizer.step()

    expected, rows = made(), made()
    by_torch(expected, range(6))
    by_torch(rows, range(2))
    originals = [own for own, _ in rows]
    stack = stack_optimizers([optimizer for _, optimizer in rows], originals)
    parameters = [
        stacked([x.detach() for x in tensors]) for tensors in zip(*originals, strict=True)
    ]
    for step in (2, 3):
        gradients = [stacked(tensors) for tensors in zip(*noise[step], strict=True)]
        stack.step(parameters, gradients, rates[:, None, None], step + 1)
    for number, own in enumerate(originals):
        own[0].data.copy_(parameters[0][number].t())
        own[1].data.copy_(parameters[1][number, :, 0])
        stack.write_row(number, 4)
    by_torch(rows, [4, 5])
    for (own, optimizer), (wanted, as_torch) in zip(rows, expected, strict=True):
        for mine, theirs in zip(own, wanted, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
        mine, theirs = optimizer.state_dict(), as_torch.state_dict()
        assert mine["param_groups"] == theirs["param_groups"]
        for key, state in theirs["state"].items():
            assert mine["state"][key].keys() == {k for k, x in state.items() if x is not None}


def test_numbers_of_rows_are_one_in_each_row():
    assert vector([1, 2]).shape == (2, 1, 1)
    assert vector([1, 2]).dtype == torch.float32
