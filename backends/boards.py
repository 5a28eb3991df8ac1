"""Boards as data: processor, clock, memories, emulator, how a program gets onto one. No code knows a board by name.

Figures are from the makers' data sheets and reference manuals: Raspberry Pi product briefs; NVIDIA Jetson module data
sheets; TI SPRS717 (AM335x); ST DS10916 and RM0385 (STM32F746), DS12110 and RM0433 (STM32H743), DS12023 and RM0432
(STM32L4R5), DS10314 and RM0383 (STM32F411); Nordic 4413_417 (nRF52840); Raspberry Pi RP2040 and RP2350 data sheets;
Arm application notes AN385, AN386, AN500, AN505 and AN547, as QEMU models them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Fpu = Literal["", "none", "single", "double"]

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
MHZ = 1_000_000

CODE, SRAM = 0x00000000, 0x20000000
"""Where Arm's M-profile memory map puts code and SRAM: the addresses of a board that does not say otherwise."""


@dataclass(frozen=True, slots=True)
class Memory:
    """One run of addresses: where it starts, and its bytes."""

    address: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Board:
    """One board. `ram` starts with the memory that the arena goes to."""

    id: str
    name: str
    cpu: str
    """A target's id: `cortex-m4`, `cortex-a72`."""
    clock_hz: int
    """Of one core, at its specified maximum."""
    ram: tuple[Memory, ...]
    flash: Memory | None = None
    """Code and constants; None where an operating system loads programs."""
    fpu: Fpu = ""
    """The floating-point unit where the chip's differs from the core's usual one."""
    emulator: str = ""
    """QEMU's machine; empty where there is none (programs for Linux run under QEMU's user mode instead)."""
    startup: str = "linux"
    """The family of start-up code and linker script: `stm32`, `nrf52`, `rp2040`, `rp2350`, `mps`, `linux`, `own`."""
    flash_with: str = ""
    """The command that puts PROGRAM.elf or PROGRAM.bin onto it."""

    @property
    def ram_bytes(self) -> int:
        """All memories together."""
        return sum(memory.bytes for memory in self.ram)


def from_description(description: Mapping[str, Any]) -> Board:
    """The inverse of `dataclasses.asdict`, also after a way through JSON."""
    ram = tuple(Memory(**memory) for memory in description["ram"])
    flash = Memory(**description["flash"]) if description["flash"] else None
    return Board(**{**description, "ram": ram, "flash": flash})


def _linux(id_: str, name: str, cpu: str, mhz: int, ram: int) -> Board:
    """`ram` is that of the smallest model sold."""
    copy = "scp -r TARGET_FOLDER user@board:"
    return Board(id_, name, cpu, mhz * MHZ, (Memory(0, ram),), flash_with=copy)


def _stm32(id_: str, name: str, cpu: str, mhz: int, flash: int, *ram: Memory, fpu: Fpu = "single") -> Board:
    start = Memory(0x08000000, flash)
    write = "st-flash write PROGRAM.bin 0x08000000"
    return Board(id_, name, cpu, mhz * MHZ, ram, start, fpu, startup="stm32", flash_with=write)


def _mps(id_: str, name: str, cpu: str, mhz: int, flash: Memory, *ram: Memory) -> Board:
    run = f"qemu-system-arm -M {id_} -nographic -semihosting -kernel PROGRAM.elf"
    return Board(id_, name, cpu, mhz * MHZ, ram, flash, emulator=id_, startup="mps", flash_with=run)


_BOARDS = (
    _linux("raspberry-pi-3", "Raspberry Pi 3 Model B", "cortex-a53", 1200, GIB),
    _linux("raspberry-pi-4", "Raspberry Pi 4 Model B", "cortex-a72", 1500, GIB),
    _linux("raspberry-pi-5", "Raspberry Pi 5", "cortex-a76", 2400, GIB),
    _linux("raspberry-pi-zero-2w", "Raspberry Pi Zero 2 W", "cortex-a53", 1000, 512 * MIB),
    _linux("jetson-nano", "NVIDIA Jetson Nano (processor)", "cortex-a57", 1430, 4 * GIB),
    _linux("jetson-orin", "NVIDIA Jetson Orin (processor)", "cortex-a78", 2200, 4 * GIB),
    _linux("beaglebone-black", "BeagleBone Black", "cortex-a8", 1000, 512 * MIB),
    _stm32("stm32f746-disco", "STM32F746G-DISCO", "cortex-m7", 216, MIB, Memory(SRAM, 320 * KIB)),
    _stm32(
        "stm32h743",
        "STM32H743 (NUCLEO-H743ZI)",
        "cortex-m7",
        480,
        2 * MIB,
        Memory(0x24000000, 512 * KIB),
        Memory(SRAM, 128 * KIB),
        Memory(0x30000000, 288 * KIB),
        Memory(0x38000000, 64 * KIB),
        fpu="double",
    ),
    _stm32("nucleo-l4r5zi", "NUCLEO-L4R5ZI", "cortex-m4", 120, 2 * MIB, Memory(SRAM, 640 * KIB)),
    _stm32("nucleo-f411re", "NUCLEO-F411RE", "cortex-m4", 100, 512 * KIB, Memory(SRAM, 128 * KIB)),
    Board(
        "nrf52840",
        "nRF52840 (nRF52840-DK)",
        "cortex-m4",
        64 * MHZ,
        (Memory(SRAM, 256 * KIB),),
        Memory(CODE, MIB),
        startup="nrf52",
        flash_with="nrfjprog --program PROGRAM.hex --sectorerase --verify --reset",
    ),
    Board(
        "arduino-nano-33-ble",
        "Arduino Nano 33 BLE",
        "cortex-m4",
        64 * MHZ,
        (Memory(SRAM, 256 * KIB),),
        Memory(0x10000, 960 * KIB),  # the boot loader has the first 64 KiB
        startup="nrf52",
        flash_with="bossac --port=PORT --usb-port=1 -i -e -w PROGRAM.bin -R",
    ),
    Board(
        "rp2040",
        "RP2040 (Raspberry Pi Pico)",
        "cortex-m0plus",
        133 * MHZ,
        (Memory(SRAM, 264 * KIB),),
        Memory(0x10000000, 2 * MIB),
        startup="rp2040",
        flash_with="picotool load -x PROGRAM.elf",
    ),
    Board(
        "rp2350",
        "RP2350 (Raspberry Pi Pico 2)",
        "cortex-m33",
        150 * MHZ,
        (Memory(SRAM, 520 * KIB),),
        Memory(0x10000000, 4 * MIB),
        startup="rp2350",
        flash_with="picotool load -x PROGRAM.elf",
    ),
    _mps(
        "mps2-an385", "Arm MPS2, AN385", "cortex-m3", 25, Memory(CODE, 4 * MIB),
        Memory(SRAM, 4 * MIB), Memory(0x21000000, 16 * MIB),
    ),
    _mps(
        "mps2-an386", "Arm MPS2, AN386", "cortex-m4", 25, Memory(CODE, 4 * MIB),
        Memory(SRAM, 4 * MIB), Memory(0x21000000, 16 * MIB),
    ),
    _mps(
        "mps2-an500", "Arm MPS2, AN500", "cortex-m7", 25, Memory(CODE, 4 * MIB),
        Memory(SRAM, 4 * MIB), Memory(0x60000000, 16 * MIB),
    ),
    # The two boards with TrustZone start in the secure state: the secure addresses of their memories.
    _mps(
        "mps2-an505", "Arm MPS2, AN505", "cortex-m33", 20, Memory(0x10000000, 4 * MIB),
        Memory(0x38000000, 4 * MIB), Memory(0x80000000, 16 * MIB),
    ),
    _mps(
        "mps3-an547", "Arm MPS3, AN547", "cortex-m55", 32, Memory(CODE, 512 * KIB),
        Memory(SRAM, 512 * KIB), Memory(0x31000000, 4 * MIB),
    ),
)  # fmt: skip

BOARDS: Mapping[str, Board] = {board.id: board for board in _BOARDS}
