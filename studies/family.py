"""
The verdicts of several reports, corrected as one family: Holm's correction over all their tests together.

    python studies/family.py results/*/

Prints a markdown table. Each folder holds a table.csv of compare.py; folders without one are passed over. A test that
stands in two reports, of the same runs, counts once.
"""

import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from experiment.markdown import grid, number
from experiment.statistics import ALPHA, holm
from wiggle import errors
from wiggle.errors import UserError


def read_tests(folders: list[Path]) -> list[dict]:
    """The lines of all table.csv files that hold a tested difference, each once, with the name of its report."""
    tests = {}
    for folder in folders:
        for path in sorted(folder.glob("table*.csv")):
            with open(path, encoding="utf-8") as file:
                lines = [line for line in csv.DictReader(file) if line["p_holm"]]
            report = folder.name + path.stem.removeprefix("table")
            for line in lines:
                alike = (line["difference"], line["p"]) if line["difference"] else (report, line["arm"])
                tests.setdefault(alike, line | {"report": report})
    return list(tests.values())


def correct_together(tests: list[dict]) -> list[dict]:
    """Add to each test its p after Holm over all of them, and the verdict that is left."""
    corrected = [p for p, _ in holm([float(test["p"]) for test in tests])]
    # Equivalence is a family of its own. Its p are corrected within their reports already, which errs on the safe side.
    margins = [test for test in tests if test.get("p_equivalent")]
    equivalent = [p for p, _ in holm([float(test["p_equivalent"]) for test in margins])]
    by_test = {id(test): p for test, p in zip(margins, equivalent, strict=True)}
    return [
        test | {"p_family": p, "left": left_of(test["verdict"], p, by_test.get(id(test), 1.0))}
        for test, p in zip(tests, corrected, strict=True)
    ]


def left_of(verdict: str, p: float, p_equivalent: float) -> str:
    """The verdict that is left of a test, by its corrected p, or that of equivalence."""
    return verdict if (p_equivalent if verdict == "equivalent" else p) < ALPHA else "inconclusive"


@errors.script
def main(argv: list[str] | None = None) -> None:
    folders = [Path(word) for word in (sys.argv[1:] if argv is None else argv)]
    tests = correct_together(read_tests(folders))
    if not tests:
        raise UserError("name the folders of reports: python studies/family.py results/*/")
    header = ["report", "arm", "difference", "p", "p (Holm)", "p (all)", "verdict", "in one family"]
    rows = []
    for test in tests:
        p = [f"{float(test[key]):.2g}" for key in ("p", "p_holm", "p_family")]
        left = test["left"] if test["left"] == test["verdict"] else f"**{test['left']}**"
        difference = number(float(test["difference"] or "nan"), "+.4f")
        rows.append([test["report"], test["arm"], difference, *p, test["verdict"], left])
    print("\n".join(grid(header, rows)))
    dropped = sum(test["left"] != test["verdict"] for test in tests)
    verdicts = sum(test["verdict"] != "inconclusive" for test in tests)
    print(f"\n{len(tests)} tests; of {verdicts} verdicts {dropped} are dropped.")


if __name__ == "__main__":
    main()
