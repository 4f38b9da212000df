"""Batch norms of averaged models: their statistics, recomputed from training data."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from src.losses import build_loss
from src.models.weights import freeze
from src.runtime.evaluation import Metrics, evaluate, recompute_batch_norms


def network(*, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(dropout)
    return nn.Sequential(*layers, nn.Linear(6, 5), nn.BatchNorm1d(5, momentum=0.3)).eval()


def batches(number: int = 7):
    generator = torch.Generator().manual_seed(1)
    for _ in range(number):
        yield 3 + 2 * torch.randn(10, 4, generator=generator), torch.zeros(10)


@pytest.mark.parametrize("is_training", [True, False])
def test_an_evaluation_leaves_the_model_in_its_mode(is_training):
    model = nn.Linear(2, 2).train(is_training)
    metrics = Metrics(build_loss("log", n_classes=2), torch.device("cpu"))
    batches = ((x, torch.tensor([0, 1])) for x in torch.ones(3, 2, 2))
    evaluate(model, batches, metrics, name="test/last", log_interval=None)
    assert model.training == is_training


def test_they_are_those_of_torchs_update_bn_to_the_bit():
    model, reference = network(), network()
    recompute_batch_norms(model, batches(), model)
    update_bn(batches(), reference)
    torch.testing.assert_close(model.state_dict(), reference.state_dict(), rtol=0, atol=0)
    assert [m.momentum for m in (model[1], model[5])] == [0.1, 0.3]
    assert not any(module.training for module in model.modules())


def test_nothing_is_drawn_and_dropout_stays_off():
    model, reference = network(dropout=0.5), network()
    before = torch.get_rng_state()
    recompute_batch_norms(model, batches(), model)
    assert torch.equal(torch.get_rng_state(), before)
    update_bn(batches(), reference)
    torch.testing.assert_close(model[5].running_var, reference[5].running_var, rtol=0, atol=0)


def test_what_was_there_before_does_not_matter():
    """So the pass may be cut short, and begun again after a kill."""
    model, again = network(), network()
    recompute_batch_norms(model, batches(), model)
    recompute_batch_norms(again, batches(3), again)
    again[1].running_mean += 7
    recompute_batch_norms(again, batches(), again)
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_an_empty_shard_does_not_count():
    model, reference = network(), network()
    more = [*batches(), (torch.full((1, 4), 1e9), torch.zeros(0))]
    recompute_batch_norms(model, (batch for batch in more), model)
    update_bn(batches(), reference)
    torch.testing.assert_close(model.state_dict(), reference.state_dict(), rtol=0, atol=0)


def test_frozen_ones_keep_their_statistics():
    model = network()
    freeze(model, ["[01]\\..*"])
    model = copy.deepcopy(model)  # as averages are
    model[1].running_mean += 7
    before = {name: tensor.clone() for name, tensor in model[1].state_dict().items()}
    recompute_batch_norms(model, batches(), model)
    torch.testing.assert_close(model[1].state_dict(), before, rtol=0, atol=0)
    assert model[5].num_batches_tracked == 7


def test_an_error_in_the_pass_leaves_the_momenta_and_modes():
    model = network()

    def stopped():
        yield from batches(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recompute_batch_norms(model, stopped(), model)
    assert model[1].momentum == 0.1
    assert not model[1].training


def test_without_batch_norms_no_batch_is_read():
    model = nn.Linear(4, 2)
    recompute_batch_norms(model, (pytest.fail("read") for _ in range(1)), model)
