"""What must hold of every graph. The pipeline asks after each pass, so that a broken pass is named at once."""

import numpy as np

from graphc.ir.graph import Array

CHUNK = 1 << 22


def has_nan(array: Array) -> bool:
    """Whether a tensor of any float or complex type holds a NaN; reads it in pieces."""
    if not (array.dtype.kind in "fc" or array.dtype.name.startswith(("bfloat", "float"))):
        return False
    flat = array.reshape(-1)
    return any(bool(np.isnan(flat[i : i + CHUNK]).any()) for i in range(0, flat.size, CHUNK))
