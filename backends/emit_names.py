"""Names that a model's author chose, made fit for C: any text becomes an identifier, or stands safely in a comment."""

import re
import unicodedata
from collections.abc import Iterable

# Words of C and C++, lower-case macros of common systems, and what the generated C itself uses.
_WORDS = """
alignas alignof and and_eq asm assert auto bitand bitor bool break case catch char char16_t char32_t char8_t class
co_await co_return co_yield compl complex concept const const_cast consteval constexpr constinit continue decltype
default delete do double dynamic_cast else enum errno explicit export extern false far float for friend goto i386 if
imaginary inline int interrupt linux long main max min mutable namespace near new noexcept noreturn not not_eq
nullptr operator or or_eq private protected public register reinterpret_cast requires restrict return short signed
sizeof static static_assert static_cast stderr stdin stdout struct switch template this thread_local throw true try
typedef typeid typename typeof union unix unsigned using virtual void volatile wchar_t while xor xor_eq
arena at barrier begin buffers change cpu_is_sufficient crc32 end error frame memcpy memset now options relax run s
share signal sigset_t size_t state step stop_workers ticks timespec uintptr_t wait_for_change walk weights work
"""
_TAKEN = frozenset(_WORDS.split())
_TAKEN_PATTERN = re.compile(r"(u?int\d+_t|runtime_\w+|step_\d+|check_\w+|pthread_\w+|clock\w*)$")

# `<name>_init` or `<name>_close` is a function of the C library.
_LIBRARY = frozenset({"atomic", "cnd", "mq", "mtx", "posix_spawn_file_actions", "posix_spawnattr", "sem"})


LONGEST = 48
"""Characters of a name that are kept: C99 tells 63 apart, and file names have limits too."""


def model_identifier(name: str) -> str:
    """The prefix of everything that a model's C exports, and of its files. Empty names become `model`."""
    found = _letters(name) or "model"
    return f"{found}_model" if found in _LIBRARY or found.startswith("pthread") else found


def tensor_identifiers(names: Iterable[str]) -> list[str]:
    """An identifier for each of a function's parameters: they differ in more than case, for macros' sake."""
    found: list[str] = []
    taken: set[str] = set()
    for name in names:
        base = _letters(name) or "tensor"
        base = base if re.search("[a-z]", base) else base.lower()  # capitals alone look like macros, and some are
        base = f"{base}_" if base in _TAKEN or _TAKEN_PATTERN.match(base) else base
        choice, count = base, 1
        while choice.lower() in taken:
            count += 1
            choice = f"{base.rstrip('_')}_{count}"
        taken.add(choice.lower())
        found.append(choice)
    return found


def _letters(name: str) -> str:
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    joined = re.sub(r"[^A-Za-z0-9]+", "_", ascii_name).strip("_")
    return (f"n{joined}" if joined[:1].isdigit() else joined)[:LONGEST].strip("_")


def comment(text: str) -> str:
    """Text that ends no comment, starts none, and has no trigraph, line break or character outside ASCII."""
    plain = text.encode("ascii", "backslashreplace").decode().replace("\\", "/")
    plain = "".join(character if character.isprintable() else "?" for character in plain)
    return re.sub(r"\?(?=\?)", "? ", plain.replace("*/", "* /").replace("/*", "/ *"))
