"""What compare.py writes about its runs: report.md, report.html, table.csv and the pictures."""

import shlex
from dataclasses import dataclass

from experiment.contrasts import Contrast, level_key, make_contrasts, pair_with_controls
from experiment.markdown import number
from experiment.nonlinearity import nonlinearity_section
from experiment.page import make_page
from experiment.pictures import draw_curves, draw_forest
from experiment.provenance import command, machine
from experiment.sections import power_section, power_summary, tuning_section
from experiment.study import Comparison, Study
from experiment.table import as_csv, big_table, is_arm, seeds_text, summary, table
from experiment.targets import target_section
from experiment.tuning import Tuning
from wiggle.files import atomic_write

BUDGETS = {"steps": "steps", "flops": "FLOPs", "time": "seconds"}  # --match -> what all arms have alike
JUDGING = (
    "Validation loss is in nats a token, after the last step, on the reporting half of the validation split (every "
    "second block of about 4,096 tokens): mean and standard deviation over seeds. Differences to the control are "
    "paired by seed: with one seed all arms start from the same value of every weight that they share, and see the "
    "same batches in the same order. The interval is Student's, of each arm by itself; p is corrected for the "
    "number of arms after Holm, and a verdict takes p < 0.05 and 3 seeds. forest.png draws the intervals that the "
    "verdicts are taken from, corrected as p is."
)
LOOKS = (
    "All of this holds for a number of seeds that was fixed before the first look. To look and add seeds inflates "
    "errors: five looks, after 3, 6, 9, 12 and 15 seeds, make 5 % into 15 %. Earlier looks at these arms, with this "
    "sweep and in this folder, are noted at the top."
)
COSTING = (
    "FLOPs a token are 6 a parameter and attention's; an activation's are 3 for each operation of its equation on each "
    "hidden unit (kernels/activations.py). The time of a step is a median of rounds by turns, with one process "
    "running, and ± the standard error of its ratio; memory is the highest that training added to its process before "
    "an evaluation, or allocated on its card. Numbers in brackets are ratios to the control."
)
REMADE = (
    "This report was written anew from the ledger, by --report: the machine and the code below are those of the "
    "writing, and the runs may be older."
)
EQUIVALENT = (
    "An arm is equivalent where two one-sided paired t-tests, corrected alike, show that it differs by less than "
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
        contrasts = make_contrasts(study, comparison.results)
        lines = table(study, comparison.results, contrasts)
        suffix = f"-{comparison.where}" if comparison.where else ""
        with atomic_write(study.out_dir / f"table{suffix}.csv") as file:
            file.write(as_csv(lines).encode())
        pairs = pair_with_controls(study, comparison.results)
        draw_curves(comparison.results, pairs, study.out_dir / f"curves{suffix}.png")
        if contrasts:
            title = forest_title(study, comparison)
            draw_forest(comparison.results, contrasts, title, study.out_dir / f"forest{suffix}.png")
        sections.append(Section(comparison, contrasts, lines, suffix))
        printed += [f"at {comparison.where}:"] if suffix else []
        printed += map(summary, lines)
        printed += power_summary(study, contrasts)
    text = markdown(study, sections, tunings, notes, argv)
    with atomic_write(study.out_dir / "report.md") as file:
        file.write(text.encode())
    tables = {f"table{section.suffix}.csv": as_csv(section.lines) for section in sections}
    with atomic_write(study.out_dir / "report.html") as file:
        file.write(make_page(text, tables, study.out_dir).encode())
    where = f"report    {study.out_dir / 'report.md'}, and with its pictures in one file: report.html"
    return [*printed, *(f"note      {note}" for note in notes), where]


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
    contrasts: list[Contrast]
    lines: list[dict]
    suffix: str


def markdown(
    study: Study, sections: list[Section], tunings: dict[str, Tuning], notes: list[str], argv: list[str]
) -> str:
    """The text of report.md; sections: the best points' first."""
    best, *others = sections
    lines = best.lines
    text = [f"# {headline(study, best.contrasts)}", ""]
    text += [*verdicts(study, best), "", *(f"> **Note:** {note}." for note in notes), ""]
    text += [*big_table(study, lines), "", *method(study, lines), ""]
    diverged = any("diverged" in line for section in sections for line in section.lines)
    text += [DIVERGED, ""] if diverged else []
    text += target_section(study, best.comparison.results)
    text += power_section(study, best.contrasts)
    text += nonlinearity_section(best.comparison.results)
    if study.swept:
        text += tuning_section(study, best.comparison, tunings)
    text += ["![validation loss by tokens](curves.png)", ""]
    text += ["![differences to the control](forest.png)", ""] if best.contrasts else []
    for section in others:
        where = section.comparison.where
        text += [
            f"## At {where}",
            "",
            f"Each arm at its best point with {where}; p is corrected within this table.",
            "",
        ]
        text += [*verdicts(study, section), "", *big_table(study, section.lines), ""]
        text += [f"![differences to the control at {where}](forest{section.suffix}.png)", ""] * bool(section.contrasts)
        text += nonlinearity_section(section.comparison.results)
    words = [word for word in argv if word != "--report"]
    text += ["## How it was made", "", "```", shlex.join(["python", "compare.py", *words]), "```", ""]
    text += [REMADE, ""] if study.options.report else []
    commands = [command(study, result) for result in best.comparison.results]
    text += ["One run of each arm alone:", "", "```", *commands, "```", ""]
    return "\n".join([*text, *machine(study)]) + "\n"


def headline(study: Study, contrasts: list[Contrast]) -> str:
    """What is compared with what."""
    varied = " and ".join(text.partition("=")[0] for text in study.options.vary)
    tested = [contrast for contrast in contrasts if not contrast.is_interaction]
    if not tested:
        return f"{varied}: {', '.join(arm.name for arm in study.arms)}"
    if level_key(study):
        return f"{varied}: {', '.join(f'{contrast.name} against {contrast.control}' for contrast in tested)}"
    return f"{varied}: {', '.join(contrast.name for contrast in tested)} against {tested[0].control}"


def method(study: Study, lines: list[dict]) -> list[str]:
    """How the numbers of the table came about, as far as it holds for this study: two paragraphs."""
    options = study.options
    judging = [JUDGING, *method_of_levels(study)]
    judging += [EQUIVALENT.format(margin=options.margin)] if options.margin else []
    steps = {line["steps"] for line in lines if is_arm(line)}
    equal = options.match != "steps" or len(steps) == 1
    costing = [f"All arms had equal {BUDGETS[options.match]}."] if equal else []
    return [" ".join([*judging, LOOKS]), "", " ".join([*costing, COSTING])]


def method_of_levels(study: Study) -> list[str]:
    """What a control of each level means, where there is one."""
    key = level_key(study)
    if not key:
        return []
    if key == "dataset":
        return ["Each dataset has its own control and verdict: losses on different texts are not comparable."]
    first = study.arms[0].settings[key]
    return [
        f"Each value of {key} has its own control. An interaction is the difference to the control less that at "
        f"{key}={first}, paired by seed: below 0 the arm gains more than there. All are corrected together."
    ]


def verdicts(study: Study, section: Section) -> list[str]:
    """A line of a list for each difference that is tested."""
    text, tested = [], {contrast.name for contrast in section.contrasts}
    for line in section.lines:
        if line["arm"] in tested:
            low, high = number(line["low"], "+.4f"), number(line["high"], "+.4f")
            numbers = f"{number(line['difference'], '+.4f')} nats a token, 95 % interval {low} to {high}"
            text.append(f"- {line['arm']}: **{line['verdict']}** ({numbers}, {seeds_text(study, line)})")
    return text
