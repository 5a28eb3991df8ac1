"""Every error a user can meet: what was expected, what came, what to do, and the exit code that goes with it."""


class GraphcError(Exception):
    """Base of graphc's own errors; the command line prints the message alone and exits with `exit_code`.

    `subject` names the file, node or key at fault. A message reads: subject: what is wrong (expected, got). remedy.
    """

    exit_code = 1

    def __init__(self, subject: str, problem: str, remedy: str = "") -> None:
        self.subject, self.problem, self.remedy = subject, problem, remedy
        super().__init__(f"{subject}: {problem}" + (f" {remedy}" if remedy else ""))


class InputError(GraphcError):
    """The user's spec, model or data is at fault."""

    exit_code = 2


class UnsupportedError(InputError):
    """A valid model asks for something that graphc or the target cannot do."""


class BudgetError(GraphcError):
    """A budget of the spec, or a board's memory, is exceeded."""

    exit_code = 3


class VerificationError(GraphcError):
    """An artifact disagrees with its reference."""

    exit_code = 4


class ToolchainError(GraphcError):
    """A compiler, linker or emulator is missing or failed."""

    exit_code = 5


class InternalError(GraphcError):
    """A bug in graphc, a compiler crash among them."""

    exit_code = 1
