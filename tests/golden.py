"""Golden text: what a test produced when someone last looked at it and agreed. `pytest --update-golden` writes it anew.

One file holds many sections, one per case:  `== name`, then the text.
"""

from pathlib import Path


class Golden:
    """The sections of one file. With `update`, texts are stored; without it, they are compared."""

    def __init__(self, path: Path, update: bool) -> None:
        self._path = path
        self._update = update

    def check(self, name: str, text: str) -> None:
        """Assert that `text` is what section `name` holds."""
        if self._update:
            self._store(name, text)
            return
        sections = self._read()
        remedy = "run pytest with --update-golden, and look at the difference"
        assert name in sections, f"{self._path.name} has no section '{name}'; {remedy}"
        assert text == sections[name], f"'{name}' differs from {self._path.name}; if that is right, {remedy}"

    def _read(self) -> dict[str, str]:
        if not self._path.exists():
            return {}
        parts = self._path.read_text(encoding="utf-8").split("== ")[1:]
        return {head: body.rstrip("\n") + "\n" for head, body in (part.split("\n", 1) for part in parts)}

    def _store(self, name: str, text: str) -> None:
        sections = {**self._read(), name: text.rstrip("\n") + "\n"}
        self._path.parent.mkdir(exist_ok=True)
        self._path.write_text("\n".join(f"== {key}\n{sections[key]}" for key in sorted(sections)), encoding="utf-8")
