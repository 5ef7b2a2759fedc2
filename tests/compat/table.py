"""Tables of what works. Each cell is a check that ran on a plain T5 and on the fused model built on it."""

import builtins
import json
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Literal

MODELS = ("T5", "T5WithFusion")


@dataclass(frozen=True)
class Outcome:
    """The result of a check: it works, it is refused with an error, its result is wrong, or it is a number."""

    status: Literal["works", "refused", "wrong", "number"]
    said: str = ""

    def __str__(self) -> str:
        return self.status + (f": {self.said}" if self.said else "")


def attempt(check: Callable, *arguments) -> Outcome:
    """Run a check. It returns a remark; its own AssertionError is a wrong result, any other error a refusal."""
    try:
        return Outcome("works", check(*arguments) or "")
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        ours = Path(where.filename).parent == Path(__file__).parent or "testing" in Path(where.filename).parts
        if isinstance(error, AssertionError) and ours:
            return Outcome("wrong", _one_line(error) or f"{where.name}: {where.line}")
        return Outcome("refused", f"{type(error).__name__}: {_one_line(error)}")


def as_error(line: str) -> Exception:
    """Return the error that another process printed as its last line, such as "ValueError: ..."."""
    kind, _, message = line.partition(": ")
    return getattr(builtins, kind, RuntimeError)(message if hasattr(builtins, kind) else line)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else ""


@dataclass
class Table:
    """Rows of checks; `cells[row][column]` holds an outcome for each of `MODELS`."""

    title: str
    about: str
    columns: list[str]
    made: str = ""  # the date and the releases
    cells: dict[str, dict[str, dict[str, Outcome]]] = field(default_factory=dict)

    def add(self, row: str, column: str, check: Callable, *arguments, models: Iterable[str] = MODELS) -> None:
        """Run `check(model, *arguments)` for each name in `models`, and put the outcomes into a cell."""
        outcomes = {model: attempt(check, model, *arguments) for model in models}
        self.cells.setdefault(row, {})[column] = outcomes
        print(f"{self.title} | {row} | {column} | {' / '.join(map(str, outcomes.values()))}", flush=True)

    def refused(self, row: str) -> bool:
        """Return whether all checks of a row were refused."""
        return all(
            outcome.status == "refused" for outcomes in self.cells[row].values() for outcome in outcomes.values()
        )

    def worse(self) -> list[str]:
        """Return the cells in which the plain T5 does better, or that are wrong if it was not tried."""
        worst_first = ("wrong", "refused", "works", "number")
        return [
            f"{self.title}, {row}, {column}: {outcomes['T5WithFusion']}"
            for row, cells in self.cells.items()
            for column, outcomes in cells.items()
            if worst_first.index(outcomes["T5WithFusion"].status)
            < worst_first.index(outcomes["T5"].status if "T5" in outcomes else "refused")
        ]

    def markdown(self) -> str:
        """Return the table, with numbers for sentences, and the sentences below it."""
        notes: dict[str, int] = {}
        lines = [
            f"## {self.title}",
            "",
            f"{self.about} {self.made}".rstrip(),
            "",
            _line(["", *self.columns]),
            _line(["---"] * (len(self.columns) + 1)),
        ]
        for row, cells in self.cells.items():
            lines.append(_line([row, *(_cell(cells.get(column), notes) for column in self.columns)]))
        return "\n".join([*lines, "", *(f"{number}. {sentence}" for sentence, number in notes.items()), ""])

    def save(self, file: Path) -> None:
        packages = ", ".join(f"{name} {version(name)}" for name in ("transformers", "peft", "torch", "accelerate"))
        self.made = f"Measured on {date.today()} with {packages}."
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, file: Path) -> "Table":
        saved = json.loads(file.read_text())
        for cells in saved["cells"].values():
            for column, outcomes in cells.items():
                cells[column] = {model: Outcome(**outcome) for model, outcome in outcomes.items()}
        return cls(**saved)


def _cell(outcomes: dict[str, Outcome] | None, notes: dict[str, int]) -> str:
    """Return the fused model's outcome, and the plain T5's beside it only if it differs."""
    if outcomes is None:
        return ""
    fused, plain = outcomes["T5WithFusion"], outcomes.get("T5")
    mark = _mark(fused, notes)
    return mark if plain is None or plain.status == fused.status else f"{mark} (plain T5: {_mark(plain, notes)})"


def _mark(outcome: Outcome, notes: dict[str, int]) -> str:
    if outcome.status == "number":
        return outcome.said
    if not outcome.said:
        return outcome.status
    return f"{outcome.status} [{notes.setdefault(outcome.said, len(notes) + 1)}]"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"
