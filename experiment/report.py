"""What compare.py writes about its runs: report.md, table.csv and the pictures."""

import shlex
from dataclasses import dataclass

from experiment.arms import ArmResult, Comparison, Study, Tuning
from experiment.nonlinearity import nonlinearity_section
from experiment.pictures import draw_curves, draw_forest
from experiment.provenance import command, machine
from experiment.sections import power_section, power_summary, tuning_section
from experiment.statistics import Difference, judge, paired
from experiment.table import as_csv, big_table, number, seeds_text, summary, table
from wiggle.files import atomic_write

BUDGETS = {"steps": "steps", "flops": "FLOPs", "time": "seconds"}  # --match -> what all arms have alike
METHOD = (
    "Validation loss is in nats a token, after the last step, on the reporting half of the validation split (every "
    "second block of about 4,096 tokens): mean and standard deviation over seeds. Differences to the control are "
    "paired by seed: with one seed all arms start from the same value of every weight that they share, and see the "
    "same batches in the same order. The interval is Student's, of each arm by itself; p is corrected for the "
    "number of arms after Holm, and a verdict takes p < 0.05 and 3 seeds. forest.png draws the intervals that the "
    "verdicts are taken from, corrected as p is.{equivalent}{budget} The time of a step is a median of bursts by "
    "turns, with one process running; memory is the highest that training added to its process before an "
    "evaluation, or allocated on its card. Numbers in brackets are ratios to the control."
)
EQUIVALENT = (
    " An arm is equivalent where two one-sided paired t-tests, corrected alike, show that it differs by less than "
    "{margin:g} nats, even if it does differ."
)
DIVERGED = (
    "A diverged seed counts as worse than any loss: its arm is judged by ranks (Wilcoxon's signed-rank test) and can "
    "not be better or equivalent, nor can any arm of which a seed is missing; means and intervals are of the seeds "
    "that ended."
)


def write(
    study: Study, comparisons: list[Comparison], tunings: dict[str, Tuning], notes: list[str], argv: list[str]
) -> list[str]:
    """
    Write the report into study.out_dir -> lines to print.

    comparisons: the arms at their best points first, then one for each --also; tunings: by arm; argv: of compare.py.
    """
    sections, printed = [], []
    for comparison in comparisons:
        differences = compare_arms(study, comparison.results)
        lines = table(study, comparison.results, differences)
        suffix = f"-{comparison.where}" if comparison.where else ""
        with atomic_write(study.out_dir / f"table{suffix}.csv") as file:
            file.write(as_csv(lines).encode())
        draw_curves(comparison.results, study.out_dir / f"curves{suffix}.png")
        title = forest_title(study, comparison)
        draw_forest(comparison.results, differences, title, study.out_dir / f"forest{suffix}.png")
        sections.append(Section(comparison, differences, lines, suffix))
        printed += [f"at {comparison.where}:"] if suffix else []
        printed += map(summary, lines)
        printed += power_summary(study, differences)
    with atomic_write(study.out_dir / "report.md") as file:
        file.write(markdown(study, sections, tunings, notes, argv).encode())
    return [*printed, *(f"note      {note}" for note in notes), f"report    {study.out_dir / 'report.md'}"]


def compare_arms(study: Study, results: list[ArmResult]) -> list[Difference]:
    """The judged difference of each arm but the first, the control, to the control."""
    losses = [{seed: run["loss"] for seed, run in result.runs.items()} for result in results]
    return judge([paired(arm, losses[0], study.seeds["reporting"]) for arm in losses[1:]], study.options.margin)


def forest_title(study: Study, comparison: Comparison) -> str:
    """What is compared in which setting, and what is drawn."""
    config, seeds = study.arms[0].config, len(study.seeds["reporting"])
    varied = {text.partition("=")[0] for text in study.options.vary}
    setting = {
        "n_layer": f"{config.n_layer} layers",
        "n_embd": f"width {config.n_embd}",
        "optimizer_type": config.optimizer_type,
        "max_iters": f"{config.max_iters:,} steps",
    }
    told = [text for key, text in setting.items() if key not in varied | set(study.swept)]
    where = [f"at {comparison.where}"] if comparison.where else []
    drawn = "mean (diamond), 95 % interval corrected after Holm (line), single seeds (dots)"
    if study.options.margin:
        drawn += f"; equivalent: thick line within ±{study.options.margin:g}"
    return f"{', '.join([config.dataset, *told, *where, f'{seeds} seeds'])}\n{drawn}"


# --- report.md ---


@dataclass(frozen=True)
class Section:
    """What the report says of one comparison. suffix: of the names of its files."""

    comparison: Comparison
    differences: list[Difference]
    lines: list[dict]
    suffix: str


def markdown(
    study: Study, sections: list[Section], tunings: dict[str, Tuning], notes: list[str], argv: list[str]
) -> str:
    """The text of report.md; sections: the best points' first."""
    best, *others = sections
    lines = best.lines
    varied = " and ".join(text.partition("=")[0] for text in study.options.vary)
    text = [f"# {varied}: {', '.join(line['arm'] for line in lines[1:])} against {lines[0]['arm']}", ""]
    text += [*verdicts(study, lines), "", *(f"> **Note:** {note}." for note in notes), ""]
    text += [*big_table(study, lines), "", method(study, lines), ""]
    diverged = any("diverged" in line for section in sections for line in section.lines)
    text += [DIVERGED, ""] if diverged else []
    text += power_section(study, best.comparison, best.differences)
    text += nonlinearity_section(best.comparison.results)
    if study.swept:
        text += tuning_section(study, best.comparison, tunings)
    text += ["![validation loss by tokens](curves.png)", "", "![differences to the control](forest.png)", ""]
    for section in others:
        where = section.comparison.where
        text += [
            f"## At {where}",
            "",
            f"Each arm at its best point with {where}; p is corrected within this table.",
            "",
        ]
        text += [*verdicts(study, section.lines), "", *big_table(study, section.lines), ""]
        text += [f"![differences to the control at {where}](forest{section.suffix}.png)", ""]
        text += nonlinearity_section(section.comparison.results)
    text += ["## How it was made", "", "```", shlex.join(["python", "compare.py", *argv]), "```", ""]
    commands = [command(study, result) for result in best.comparison.results]
    text += ["One run of each arm alone:", "", "```", *commands, "```", ""]
    return "\n".join([*text, *machine(study)]) + "\n"


def method(study: Study, lines: list[dict]) -> str:
    """How the numbers of the table came about, as far as it holds for this study."""
    options = study.options
    equal = f" All arms had equal {BUDGETS[options.match]}."
    if options.match == "steps" and len({line["steps"] for line in lines}) > 1:
        equal = ""
    equivalent = EQUIVALENT.format(margin=options.margin) if options.margin else ""
    return METHOD.format(budget=equal, equivalent=equivalent)


def verdicts(study: Study, lines: list[dict]) -> list[str]:
    """A line of a list for each arm but the control."""
    text = []
    for line in lines[1:]:
        low, high = number(line["low"], "+.4f"), number(line["high"], "+.4f")
        numbers = f"{number(line['difference'], '+.4f')} nats a token, 95 % interval {low} to {high}"
        text.append(f"- {line['arm']}: **{line['verdict']}** ({numbers}, {seeds_text(study, line)})")
    return text
