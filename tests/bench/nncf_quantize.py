"""NNCF's post-training quantization of an ONNX model; run by the Python of an environment that has nncf.

python nncf_quantize.py MODEL CALIBRATION.npy INPUT RESULT [transformer]
"""

import sys

import nncf
import numpy as np
import onnx


def main(model: str, calibration: str, name: str, result: str, kind: str = "") -> None:
    rows = np.load(calibration)
    data = nncf.Dataset([{name: row[None]} for row in rows])
    options = {"model_type": nncf.ModelType.TRANSFORMER} if kind == "transformer" else {}
    quantized = nncf.quantize(onnx.load(model), data, subset_size=len(rows), **options)
    onnx.save(quantized, result)


if __name__ == "__main__":
    main(*sys.argv[1:])
