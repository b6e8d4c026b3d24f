"""What wiggle.analysis measured, in words: lines for the console, analysis.json and the foot of the page."""

from collections.abc import Iterator

from wiggle.analysis_events import SAME
from wiggle.figures import MIN_COUNT, NAMED, readable

TOO_RARE = f"no token occurs {MIN_COUNT} times"


def describe_layer(summaries: dict[str, dict]) -> Iterator[str]:
    """Summaries of a layer's figures, by state -> the sentences that say what they show."""
    before, now = summaries["before"], summaries["now"]
    if "preactivation_std" in now:
        yield describe_activation(before, now)
    if "events" in now:
        yield describe_events(before, now)
    learned = describe_learned(before, now)
    if learned:
        yield f"learned: {learned}"
    yield from describe_oscillations(before, now)
    if "information" in now:
        yield from describe_dendrites(before, summaries["mixed"], now)


def describe_activation(before: dict, now: dict) -> str:
    std, wide = (f"{layer['preactivation_std']:.2f}" for layer in (now, before))
    share, past = (f"{100 * layer['nonlinear_share']:.1f}" for layer in (now, before))
    return f"pre-activations: std {std} (before {wide}), {share} % of the output's variance not linear (before {past})"


def describe_learned(before: dict, now: dict) -> str:
    """What was learned, as means and standard deviations, but for neurons that have a sentence of their own."""
    told = tuple(f"{name}." for name in now.get("neurons", {}))
    named = [name for name in now["learned"] if not (told and name.startswith(told))]
    learned = [(name.removeprefix("neuron."), *(layer["learned"][name] for layer in (now, before))) for name in named]
    return ", ".join(f"{name} {distribution(values)} (before {distribution(past)})" for name, values, past in learned)


def distribution(values: dict) -> str:
    """The summary of an array -> its mean and, where it varies, its standard deviation."""
    return f"{values['mean']:.3g}" + (f" +- {values['sd']:.2g}" if values["sd"] > 1e-5 * abs(values["mean"]) else "")


def describe_oscillations(before: dict, now: dict) -> Iterator[str]:
    """Summaries of an oscillating layer's figures -> the sentences that say what they show."""
    for name, bank in now.get("neurons", {}).items():
        past, share = (100 * layer["neurons"][name]["beyond_maximum"]["mean"] for layer in (before, now))
        x, omega, linear = bank["abs_x"], bank["omega"], 100 * bank["linearised"]
        said = f"{share:.1f} % of phases past pi/2 (before {past:.1f}), |x| {x['q50']:.2f}, 95 % below {x['q95']:.2f}"
        yield f"{name}: {said}, omega {omega['mean']:.2f} +- {omega['sd']:.2f}, {linear:.1f} % linearised"


def describe_events(before: dict, now: dict) -> str:
    rate, past = (100 * layer.get("event_rate", {"mean": 1})["mean"] for layer in (now, before))
    never, always = 100 * now["silent"], 100 * now["always_on"]
    said = f"events: {rate:.0f} % of units fire (before {past:.0f}), {never:.1f} % never, {always:.1f} % always;"
    if now["silence"] == "zeros":
        said = f"exact zeros: {100 - rate:.0f} % of outputs (before {100 - past:.0f}), {never:.1f} % of units always 0"
        said += f", {always:.1f} % never; active"
    return f"{said} {describe_tokens(now['events'])}"


def describe_tokens(events: list[dict]) -> str:
    """Tokens by rate, highest first, as events_by_token gives them -> the first and the last of them."""
    if not events:
        return TOO_RARE
    if events[0]["rate"] - events[-1]["rate"] <= SAME:
        return "alike on all tokens"
    tokens = [f"{quoted(line['token'])} {100 * line['rate']:.0f}" for line in events]
    most, rest = tokens[:NAMED], tokens[NAMED:]
    return f"most on {', '.join(most)}" + (f"; least on {', '.join(rest[-NAMED:])}" if rest else "")


def quoted(token: str) -> str:
    """A token as one reads it, in quotation marks that it does not hold."""
    mark = '"' if "'" in token else "'"
    return f"{mark}{readable(token)}{mark}"


def describe_dendrites(before: dict, mixed: dict, now: dict) -> Iterator[str]:
    """Summaries of a dendritic layer's figures -> the sentences that say what they show."""
    used, past = (layer["effective_branches"]["mean"] for layer in (now, before))
    yield f"effective branches {used:.2f} (before {past:.2f}), {100 * now['dead']:.1f} % of branches dead"
    for name, told in now["information"].items():
        bits, past, same = (layer["information"][name]["bits"]["mean"] for layer in (now, before, mixed))
        said = f"{bits:.3f} of {now['winner_entropy']['mean']:.2f} bit about the {name} (before {past:.3f}"
        chance = told["shuffled"]["mean"]
        yield f"branches tell {said}, those on today's inputs {same:.3f}, shuffled {chance:.4f})"
    for unit in now["units"]:
        won = [" ".join(f"{quoted(token)} {100 * share:.0f}" for token, share in branch) for branch in unit["tokens"]]
        won = f"% won: {' | '.join(won)}" if any(won) else TOO_RARE
        yield f"unit {unit['unit']}, {unit['bits']:.2f} of {unit['entropy']:.2f} bit, {won}"


def describe_work(work: dict[str, float]) -> str:
    """What events leave of the MLPs' weights and multiply-adds a token: see analysis_events.mlp_work."""
    whole, left = (f"{work[f'bytes{of}'] / 1e6:.3g} MB" for of in ("", "_left"))
    said = f"MLPs read {whole} of weights a token, in {work['multiply_adds'] / 1e6:.3g}M multiply-adds"
    if work["bytes_left"] == work["bytes"]:
        return f"{said}; events leave all of it: silent features of a soft gate still add to the output"
    said += f"; without c_proj's rows of silent units {left}, in {work['multiply_adds_left'] / 1e6:.3g}M"
    if "bytes_screened" in work:
        said += f"; generating, with c_fc screened through 8 bits, {work['bytes_screened'] / 1e6:.3g} MB"
    return said
