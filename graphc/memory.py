"""Where results are kept between builds, seen from the code that makes them. `graphc.compile` gives it a folder."""

from typing import Any, Protocol


class Memory(Protocol):
    """`parts` are all that decides a result of `kind`, as text or JSON-ready data."""

    def recall(self, kind: str, *parts: Any) -> bytes | None:
        """What was kept; None where there is nothing."""
        ...

    def keep(self, value: bytes, kind: str, *parts: Any) -> None: ...


class Forgetful:
    """Keeps nothing."""

    def recall(self, kind: str, *parts: Any) -> bytes | None:
        del kind, parts
        return None

    def keep(self, value: bytes, kind: str, *parts: Any) -> None:
        del value, kind, parts
