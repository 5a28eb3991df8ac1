"""Trains the quickstart's network on scikit-learn's handwritten digits and writes model.onnx and the two data splits.

    python specs/digits/train.py          # needs: pip install -e '.[train,dev]'

The data are real: 1,797 scans of 8x8 pixels with 17 grey levels (UCI Optical Recognition of Handwritten Digits). 500
are held out, drawn evenly from the ten digits; 200 of those trained on serve for calibration. One thread and fixed
seeds make a run repeatable on one machine; another torch or CPU may round differently and end in other weights.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper, parser
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

FOLDER = Path(__file__).parent
HELD_OUT, CALIBRATION, EPOCHS, BATCH = 500, 200, 80, 32

GRAPH = """
<ir_version: 10, opset_import: ["" : 21], producer_name: "graphc digits">
digits (float[N, 1, 8, 8] image) => (float[N, 10] logits) {
    a0 = Conv <kernel_shape = [3, 3]> (image, conv1_weight)
    a1 = BatchNormalization (a0, norm1_weight, norm1_bias, norm1_running_mean, norm1_running_var)
    a2 = Relu (a1)
    b0 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (a2, conv2_weight)
    b1 = BatchNormalization (b0, norm2_weight, norm2_bias, norm2_running_mean, norm2_running_var)
    b2 = Relu (b1)
    b3 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (b2)
    c0 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (b3, conv3_weight)
    c1 = BatchNormalization (c0, norm3_weight, norm3_bias, norm3_running_mean, norm3_running_var)
    c2 = Add (c1, b3)
    c3 = Relu (c2)
    d0 = Flatten (c3)
    d1 = Gemm <transB = 1> (d0, hidden_weight, hidden_bias)
    d2 = Relu (d1)
    logits = Gemm <transB = 1> (d2, classes_weight, classes_bias)
}
"""
"""The network as ONNX text; its weights are named as torch names them, with `_` for `.`."""


class Digits(nn.Module):
    """The network of GRAPH, for training. Input `[N, 1, 8, 8]`, standardized."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 16, 3, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.norm2 = nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.conv3, self.norm3 = nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.hidden, self.classes = nn.Linear(288, 64), nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        a = functional.relu(self.norm1(self.conv1(image)))
        b = functional.max_pool2d(functional.relu(self.norm2(self.conv2(a))), 2)
        c = functional.relu(self.norm3(self.conv3(b)) + b)
        return self.classes(functional.relu(self.hidden(c.flatten(1))))


def standardize(images: npt.NDArray[np.float32]) -> Tensor:
    """What `preprocess` in digits.yaml says: raw `[N, 8, 8, 1]`, 0 to 16, to `[N, 1, 8, 8]`."""
    return torch.from_numpy((images.transpose(0, 3, 1, 2) / 16 - 0.305).astype(np.float32) / np.float32(0.376))


def shifted(images: Tensor) -> Tensor:
    """Each image moved by up to one pixel in both directions, the edge repeated."""
    padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    rows, columns = torch.randint(0, 3, (2, len(images)))
    windows = padded.unfold(2, 8, 1).unfold(3, 8, 1)
    return windows[torch.arange(len(images)), :, rows, columns]


def train(images: Tensor, labels: Tensor) -> Digits:
    torch.manual_seed(0)
    network = Digits().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    steps = EPOCHS * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images)).split(BATCH):
            loss = functional.cross_entropy(network(shifted(images[rows])), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def to_onnx(network: Digits) -> onnx.ModelProto:
    model = parser.parse_model(GRAPH)
    used = {name for node in model.graph.node for name in node.input}
    weights = {name.replace(".", "_"): value.numpy() for name, value in network.state_dict().items()}
    model.graph.initializer.extend(numpy_helper.from_array(weights[name], name) for name in weights if name in used)
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype(np.float32)
    known, held, known_labels, held_labels = train_test_split(
        images, labels, test_size=HELD_OUT, stratify=labels, random_state=0
    )
    network = train(standardize(known), torch.from_numpy(known_labels))
    with torch.no_grad():
        right = (network(standardize(held)).argmax(1).numpy() == held_labels).mean()
    print(f"{100 * right:.1f} % of {HELD_OUT} held-out digits")
    onnx.save(to_onnx(network), FOLDER / "model.onnx")
    np.savez_compressed(FOLDER / "calibration.npz", image=known[:CALIBRATION])
    np.savez_compressed(FOLDER / "test.npz", image=held, y=held_labels.astype(np.int64))


if __name__ == "__main__":
    main()
