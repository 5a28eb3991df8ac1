"""What Linux must say of an Arm processor before kernels run on it: a clear error instead of SIGILL.

Source: Linux, arch/arm64/include/uapi/asm/hwcap.h and arch/arm/include/uapi/asm/hwcap.h.
"""

from collections.abc import Mapping

from graphc.backends.targets import Target

# Instruction -> its bits in AT_HWCAP and AT_HWCAP2.
AARCH64: Mapping[str, tuple[int, int]] = {
    "neon": (1 << 1, 0),
    "fp16": (1 << 9 | 1 << 10, 0),
    "dotprod": (1 << 20 | 1 << 12, 0),  # LLVM's cores with dot products have sqrdmlah too
    "i8mm": (0, 1 << 13),
    "bf16": (0, 1 << 14),
}
ARMV7: Mapping[str, tuple[int, int]] = {
    "neon": (1 << 12, 0),
    "fma": (1 << 16, 0),
}


def capabilities(target: Target) -> tuple[int, int]:
    """Bits that must be set in AT_HWCAP and AT_HWCAP2."""
    table = AARCH64 if target.triple.startswith("aarch64") else ARMV7
    wanted = [table[name] for name in target.instructions if name in table]
    first = second = 0
    for low, high in wanted:
        first, second = first | low, second | high
    return first, second
