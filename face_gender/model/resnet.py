"""ResNet (He et al., arXiv:1512.03385) with the layers, names and first weights of torchvision.

Here and not imported, since ``import torchvision`` doubles the time that a command takes to start;
`tests/test_models.py` holds that both give the same numbers.
"""

from __future__ import annotations

from torch import Tensor, nn

# Blocks in each of the four stages, and whether they are bottlenecks.
RESNETS = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
    "resnet152": ((3, 8, 36, 3), True),
}
_EXPANSION = 4  # of a bottleneck's channels


class Block(nn.Module):
    """Two 3 x 3 convolutions, or a bottleneck of three, beside a shortcut.

    The stride is that of the 3 x 3 convolution, as in torchvision ("ResNet v1.5").
    """

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = width * _EXPANSION if bottleneck else width
        shortcut = None
        if stride != 1 or inputs != outputs:
            shortcut = nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
        kernels, strides = ((1, 3, 1), (1, stride, 1)) if bottleneck else ((3, 3), (stride, 1))
        channels = [inputs, *[width] * (len(kernels) - 1), outputs]
        self.depth = len(kernels)
        for i, (kernel, step) in enumerate(zip(kernels, strides, strict=True)):
            self.add_module(f"conv{i + 1}", _conv(channels[i], channels[i + 1], kernel, step))
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(channels[i + 1]))
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for i in range(1, self.depth + 1):
            out = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(out))
            if i < self.depth:
                out = out.relu_()
        out += x if self.downsample is None else self.downsample(x)
        return out.relu_()


class ResNet(nn.Module):
    """(N, 3, H, W) float32 -> logits (N, classes), for pictures of any size."""

    def __init__(self, stages: tuple[int, ...], bottleneck: bool, classes: int) -> None:
        super().__init__()
        self.conv1 = _conv(3, 64, 7, 2)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs = 64
        for i, count in enumerate(stages):
            width, blocks = 64 * 2**i, []
            for j in range(count):
                blocks.append(Block(inputs, width, 2 if i and not j else 1, bottleneck))
                inputs = width * _EXPANSION if bottleneck else width
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():
            # On the meta device nothing is sampled, and to try would import torch's compiler.
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, images: Tensor) -> Tensor:
        """Return what the last layer takes, (N, 512) or (N, 2048), of images (N, 3, H, W)."""
        x: Tensor = self.maxpool(self.bn1(self.conv1(images)).relu_())
        for i in range(1, 5):
            x = self.get_submodule(f"layer{i}")(x)
        return x.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.features(images))
        return logits


def _conv(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
