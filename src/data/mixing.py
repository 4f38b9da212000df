"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019): images and classes, in pairs."""

import torch
import torch.nn.functional as F
from torch import Tensor

from src.support import random_state

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
