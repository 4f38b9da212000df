"""Weight decay of weights and of whatever has `bias` in its name."""

from torch import nn

from src.optim.param_groups import param_groups


def test_biases_decay_on_their_own_and_everything_else_as_weights():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.GRU(4, 2))
    weights, biases = param_groups(model, weight_decay=0.1, weight_decay_biases=0.2)
    names = {id(p): name for name, p in model.named_parameters()}
    assert [names[id(p)] for p in weights["params"]] == [
        *("0.weight", "1.weight", "2.weight_ih_l0", "2.weight_hh_l0")
    ]
    assert [names[id(p)] for p in biases["params"]] == [
        *("0.bias", "1.bias", "2.bias_ih_l0", "2.bias_hh_l0")
    ]
    assert (weights["weight_decay"], biases["weight_decay"]) == (0.1, 0.2)


def test_frozen_parameters_are_left_out_and_no_group_is_empty():
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2))
    model[1].requires_grad_(False)
    (group,) = param_groups(model, weight_decay=0.1, weight_decay_biases=0.2)
    assert group["params"] == [model[0].weight]


def test_a_shared_parameter_is_stepped_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    weights, biases = param_groups(model, weight_decay=0.0, weight_decay_biases=0.1)
    assert (len(weights["params"]), len(biases["params"])) == (1, 2)


def test_one_group_holds_all_where_both_decay_alike():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    (group,) = param_groups(model, weight_decay=0.1, weight_decay_biases=0.1)
    assert group["params"] == list(model.parameters())
    assert group["weight_decay"] == 0.1
