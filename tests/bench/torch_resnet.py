"""CIFAR-10's ResNet-56 as a torch module that takes its weights from the ONNX file: batch norms are folded there."""

from pathlib import Path
from typing import Self

import onnx
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Two convolutions and a shortcut: every second place and channels padded with zeros where the size changes."""

    def __init__(self, first: nn.Conv2d, second: nn.Conv2d) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.second(functional.relu(self.first(x)))
        if inner.shape != x.shape:
            side = (inner.shape[1] - x.shape[1]) // 2
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, side, side))
        return functional.relu(x + inner)


class Twin(nn.Module):
    def __init__(self, convolutions: list[nn.Conv2d], head: nn.Linear) -> None:
        super().__init__()
        self.stem, self.head = convolutions[0], head
        pairs = zip(convolutions[1::2], convolutions[2::2], strict=True)
        self.blocks = nn.ModuleList(Block(first, second) for first, second in pairs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        found: torch.Tensor = self.head(x.mean(dim=(2, 3)))
        return found

    @classmethod
    def read(cls, path: Path) -> Self:
        """The model of the file, whose convolutions stand in the order in which they run."""
        graph = onnx.load(path).graph
        arrays = {each.name: torch.from_numpy(numpy_helper.to_array(each).copy()) for each in graph.initializer}
        convolutions, head = [], None
        for node in graph.node:
            if node.op_type == "Conv":
                weight, bias = (arrays[name] for name in node.input[1:3])
                attributes = {each.name: each.ints for each in node.attribute}
                made = nn.Conv2d(
                    weight.shape[1],
                    weight.shape[0],
                    int(weight.shape[2]),
                    stride=int(attributes["strides"][0]),
                    padding=int(attributes["pads"][0]),
                )
                made.weight, made.bias = nn.Parameter(weight), nn.Parameter(bias)
                convolutions.append(made)
            elif node.op_type == "Gemm":
                weight, bias = (arrays[name] for name in node.input[1:3])
                head = nn.Linear(weight.shape[1], weight.shape[0])
                head.weight, head.bias = nn.Parameter(weight), nn.Parameter(bias)
        assert head is not None
        return cls(convolutions, head).eval()
