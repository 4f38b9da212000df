"""What is done to training batches as a whole: mixup (Zhang et al. 2018) and CutMix (Yun et al.
2019), which mix images and classes in pairs; and aug_function, a function of your own."""

import torch
import torch.nn.functional as F
from torch import Tensor

from src.config import import_function
from src.support import bad_value, random_state

MIXABLE_LOSSES = ("log", "xentropy")  # cross-entropy, which takes probabilities of classes


class Mixing:
    """mixing(inputs, targets, seed=…) -> mixed inputs, and the probabilities of their classes.

    inputs: (n, *shape), changed in place, on any device. targets: (n,) int64 -> (n, num_classes).
    The first is mixed with the last and so on, one weight a batch; the last of an odd number
    stays as it is. A function of the seed: the global generators are as they were afterwards.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        prob: float = 1.0,
        switch_prob: float = 0.5,
    ) -> None:
        """mixup, cutmix: parameters of Beta distributions, one of them above 0. prob: of a batch
        to be mixed. switch_prob: where both are given, of CutMix."""
        from timm.data.mixup import Mixup

        self.num_classes = num_classes
        self.mix = Mixup(
            mixup_alpha=mixup,
            cutmix_alpha=cutmix,
            prob=prob,
            switch_prob=switch_prob,
            label_smoothing=0.0,  # the loss smooths
            num_classes=num_classes,
        )

    def __call__(self, inputs: Tensor, targets: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
        even = len(targets) - len(targets) % 2
        with random_state.isolate_rng():
            random_state.seed_everything(seed, cpu_only=True)
            mixed, soft_targets = self.mix(inputs[:even], targets[:even])
        if even == len(targets):
            return mixed, soft_targets
        last = F.one_hot(targets[even:], self.num_classes).to(soft_targets.dtype)
        return torch.cat([mixed, inputs[even:]]), torch.cat([soft_targets, last])


class OwnAugmentation:
    """aug_function: function(inputs, targets) -> (inputs, targets), of as many examples.

    It is called on the device with the batch (of several processes, with the shard of each) and may
    change it in place. All generators of torch, numpy and Python are seeded for each call and
    afterwards are as they were, so what it draws is a function of the seed, wherever it draws it.
    (That costs 0.1 to 0.3 ms a step; a torch.Generator as an argument would cost less, but
    transforms of libraries do not take one.)
    """

    def __init__(self, name: str, rank: int = 0) -> None:
        """rank: of the process, as each shard is to have noise of its own."""
        self.name, self.rank = name, rank
        self.function = import_function(name, "aug_function", ["inputs", "targets"])

    def __call__(self, inputs: Tensor, targets: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
        num_examples, on_cpu = len(targets), targets.device.type == "cpu"
        with random_state.isolate_rng():
            random_state.seed_everything(seed + self.rank, cpu_only=on_cpu)
            made = self.function(inputs, targets)
        parts = made if isinstance(made, tuple) else (made,)
        is_batch = made is parts and [type(part) for part in parts] == [Tensor, Tensor]
        is_batch = is_batch and parts[0].dtype == inputs.dtype
        if not is_batch or any(len(part) != num_examples for part in parts):
            expected = f"a function that gives (inputs, targets) of {num_examples} examples, "
            expected += f"inputs of {inputs.dtype}, not " + ", ".join(
                f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
                for x in parts
            )
            raise bad_value("aug_function", self.name, expected)
        return made
