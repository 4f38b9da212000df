"""Models by name: from `model: FAMILY/NAME` to a torch module.

    registry.py     the table of families; check_model before there are data, then build_model
    weights.py      what is done to any model: model_weights, model_head_init, model_freeze
    linear.py       linear, linear/no_bias: one layer, also on sparse rows
    tiny.py         tiny/…: LeNet, VGG, ResNet and Wide ResNet, written out from their papers
    timm.py, torchvision.py, clip.py    networks of these libraries (clip/… of open_clip)
    hf.py           hf/…: networks of transformers
    custom.py       module.path:function, a network of your own

A family is a module with resolve(name) and build(name, input_shape, n_outputs), which returns the
model and the names of the modules that make up its head; a new one is a file and a line in
FAMILIES. The start of a model is a function of seed_model: everything is drawn on the CPU, in the
order in which its layers are made. state_dict() is the format of checkpoints and of model_weights,
so names of layers do not change.
"""

from typing import TYPE_CHECKING

from src import lazy_names

if TYPE_CHECKING:
    from src.models.registry import (
        build_model,  # the model of a configuration
        check_model,  # the errors that show before there are data
        model_names,  # all of them, for --list
        model_preprocessing,  # how the data were prepared for a network's weights
        output_dim,  # the number of outputs
        without_weights,  # a configuration whose weights come from a checkpoint
    )
    from src.models.weights import keeps_statistics  # whether a batch norm is frozen
else:
    __getattr__ = lazy_names(__name__)
