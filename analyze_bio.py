"""
What a trained model's neurons learned: a page of pictures, analysis.png, and its figures, analysis.json.

    python analyze_bio.py --out_dir=out/quickstart

All stands beside an earlier state on the same text: --before, else the untrained network, drawn again from the seed in
the checkpoint. Oscillation: ω, φ, shapes, events, and how far the phase |ωx + φ| goes: only past π/2, the sine's first
maximum, is a neuron a wave and not just a bent x². Dendrites: usage, β, and whether branches factor the input: the
mutual information of a unit's winning branch with the token, its class and its place in the window, less what shuffled
labels give, for finite samples bias it upwards. Untrained branches read the token's embedding too, and any branches
tell more of it where the inputs do: so the yardsticks are the earlier network, and its branches on today's inputs.
"""

import contextlib
import itertools
import json
import math
import sys
import textwrap
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_pre_hook

from model_bio import GPT, OscillatingNeuron
from wiggle import checkpoint, configurator, custom_neuron, errors
from wiggle.dataset import Dataset
from wiggle.device import pick_device
from wiggle.errors import UserError
from wiggle.files import atomic_write, write_json
from wiggle.tokenizer import from_identity

COLOURS = {"before": "#7F7F7F", "mixed": "#E69F00", "now": "#0072B2"}  # Okabe and Ito's
LINEAR = 0.1  # |ω| below which a neuron counts as linearised: over usual inputs its sine does not bend
SHUFFLES = 10  # of the labels, for the bias of a mutual information
SEEN = 20  # only tokens that occur so often are named
SHOWN = 6  # layers in the atlas, neurons in its rows, tokens in a list


@dataclass
class AnalyzeConfig:
    """What to look at, and on which text."""

    out_dir: str = "out"  # a run's folder (best.pt, else ckpt.pt), or a checkpoint file
    before: str | None = None  # the earlier state, given likewise; None = the untrained network
    seed: int | None = None  # of the untrained network; None = the training seed, which the checkpoint records
    neuron: str | None = None  # file.py:Name, for a checkpoint with your own neuron that holds an OscillatingNeuron
    to: str | None = None  # the folder for analysis.png and analysis.json; None = the checkpoint's
    dataset: str | None = None  # folder under data_dir; None = what the model was trained on
    data_dir: str = "data"  # where datasets lie
    tokens: int = 16384  # of the validation split, in evenly spread windows, at least one; memory grows with it
    device: str = "auto"  # auto (cuda > mps > cpu), cpu, cuda, cuda:1, mps


def load(path, device, neuron):
    """-> (model, meta), as checkpoint.load_model. Raises UserError for a model that has nothing to show."""
    model, meta = checkpoint.load_model(path, device, neuron)
    if model.config.mlp != "dendritic" and not any(isinstance(m, OscillatingNeuron) for m in model.modules()):
        raise UserError(f"{meta['path']}: mlp={model.config.mlp} has nothing to analyse, but bio and dendritic have")
    if not all(weight.isfinite().all() for weight in model.parameters()):
        raise UserError(f"{meta['path']} holds weights that are not finite: its run diverged")
    return model, meta


def earlier(config, model, meta, neuron, device):
    """-> the model to compare with; adds its short name and its step to meta, as 'before' and 'began'."""
    if config.before:
        before, found = load(config.before, device, neuron)
        now, then = ([m.config.block_size, *((k, w.shape) for k, w in m.state_dict().items())] for m in (model, before))
        if now != then:
            raise UserError(f"{found['path']} has other shapes ({before.describe()}) than {meta['path']}")
        meta |= {"before": f"{found['path']}, step {found['iter_num']}", "began": found["iter_num"]}
        return before
    recorded, origin = (meta["config"].get(key) for key in ("seed", "init_from"))
    seed = next(seed for seed in (config.seed, recorded, 0) if seed is not None)
    if seed != recorded or origin not in ("scratch", "resume") or meta["origin"] != "WiggleGPT":
        print(f"note      seed {seed} draws an untrained network, but not the one that this checkpoint began as")
    meta |= {"before": f"untrained, seed {seed}", "began": 0}
    return GPT(model.config, neuron, seed).to(device).eval()


def read_text(config, model, meta):
    """Windows of validation text, idx (B, T); texts of the M tokens seen; labels: {what: a number for each token}."""
    name = config.dataset or meta["config"].get("dataset")
    if not name:
        raise UserError(f"{meta['path']} does not say what it was trained on: name it with --dataset")
    data = Dataset(Path(config.data_dir, str(name)), model.config.block_size, seed=0)
    data.check_ids(model.config.vocab_size)
    tokenizer = from_identity(data.tokenizer)
    if meta["tokenizer"] and from_identity(meta["tokenizer"]).identity() != tokenizer.identity():
        raise UserError(f"{data.folder} has another vocabulary than {meta['path']} was trained on")
    idx, _ = data.windows("val", data.fixed_windows("val", max(1, config.tokens // data.block_size)))
    seen, token = idx.flatten().unique(return_inverse=True)  # token: (B·T,), numbers below M
    texts = [tokenizer.token_bytes(i).decode("utf-8", "replace") for i in seen]
    # a token's class is its first character's in Unicode, and whether a space goes before that, as in GPT-2's words
    kinds = [(text[0] == " ", unicodedata.category((text.strip() or text)[0])) for text in texts]
    classes = torch.tensor([sorted(set(kinds)).index(kind) for kind in kinds])
    place = torch.arange(idx.size(1)) * 8 // idx.size(1)  # eighths of the window
    return idx, texts, {"token": token, "class": classes[token], "position": place.repeat(len(idx))}


def recording(given):
    """While this context lasts, what each module in `given` is given joins its list there: (N, its features)."""
    return register_module_forward_pre_hook(lambda m, x: given[m].append(x[0].flatten(0, -2)) if m in given else None)


def waves(mlp, x, texts, labels):
    """x: (N, C), a block's inputs -> its state, where an array has a value for each neuron, token or activation."""
    found = {name: module for name, module in mlp.named_modules() if isinstance(module, OscillatingNeuron)}
    gate, state, given = getattr(mlp, "sparse_gate", None), {"neurons": {}}, {neuron: [] for neuron in found.values()}
    with recording(given):
        y = (mlp.oscillating if hasattr(mlp, "oscillating") else mlp.neuron)(mlp.c_fc(x))  # (N, F)
        if gate is not None:
            gate(y)
    for name, neuron in found.items():
        x = torch.cat(given[neuron]).float()
        phase = (neuron.omega * x + neuron.phi).abs()  # (N, F)
        some = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[: 1 + 2**18 // x.size(1)]  # a sample
        bank = {"omega": neuron.omega, "phi": neuron.phi, "abs_x": x[some].abs(), "abs_phase": phase[some]}
        bank |= {"beyond_maximum": (phase > math.pi / 2).float().mean(0)}  # the share of a neuron's activations
        bank = {key: values.flatten().cpu().numpy() for key, values in bank.items()}
        bank |= {"linearised": np.mean(np.abs(bank["omega"]) < LINEAR), "_neuron": neuron, "_x": x[some]}
        state["neurons"][name] = bank
    if gate is not None:
        rate = (gate.voltage(y) > gate.threshold).float().mean(-1).cpu()  # (N,), the share of features that fire
        count = labels["token"].bincount()
        mean = torch.zeros(len(texts)).index_add_(0, labels["token"], rate) / count
        order = [i for i in mean.argsort(descending=True).tolist() if count[i] >= SEEN]
        tokens = [{"token": texts[i], "count": count[i].item(), "rate": round(mean[i].item(), 4)} for i in order]
        state |= {"event_rate": rate.numpy(), "events": tokens}
    return state


def branches(mlp, x, texts, labels):
    """x: (N, C), inputs of a DendriticMLP -> its state; dead are branches that win on under 0.1 % of tokens."""
    wins = F.one_hot(mlp.compete(x)[1].argmax(-2), mlp.branches).permute(2, 0, 1).float().contiguous()  # (K, N, F)
    usage, generator, known, units = wins.mean(1), torch.Generator().manual_seed(0), {}, []
    spent = entropy(usage, 0)  # (F,)
    for what, label in labels.items():
        orders = [torch.randperm(len(x), generator=generator) for _ in range(SHUFFLES)]
        chance = torch.stack([information(wins, label[order])[0] for order in orders])  # (SHUFFLES, F)
        bits = information(wins, label)[0] - chance.mean(0)
        known[what] = {"bits": bits.cpu().numpy(), "shuffled": chance.mean(1).cpu().numpy()}
        known[what] |= {"share_of_entropy": (bits.mean() / spent.mean()).item()}
    counts, bits = information(wins, labels["token"])[1], known["token"]["bits"]  # (K, M, F), (F,)
    share = torch.where(counts.sum(0) >= SEEN, counts / counts.sum(0), 0.0).cpu()  # P(branch | token)
    for i in bits.argsort()[::-1][:3].tolist():
        tops = [row.topk(min(SHOWN, len(row))) for row in share[..., i]]
        pulls = [[(texts[t], round(v.item(), 4)) for v, t in zip(*top, strict=True) if v > 0.01] for top in tops]
        units.append({"unit": i, "bits": float(bits[i]), "entropy": spent[i].item(), "tokens": pulls})
    weights = F.normalize(mlp.c_fc.weight.unflatten(0, (mlp.branches, mlp.hidden)), dim=-1)  # (K, F, C)
    pairs = [(weights[i] * weights[j]).sum(-1) for i in range(mlp.branches) for j in range(i)]
    state = {"effective_branches": (spent * math.log(2)).exp(), "winner_entropy": spent, "cosine": torch.cat(pairs)}
    state |= {"usage": usage.flatten(), "beta": mlp.log_beta.exp()}
    state = {key: values.cpu().numpy() for key, values in state.items()} | {"usage_by_branch": usage.mean(1).tolist()}
    return state | {"dead": (usage < 0.001).float().mean().item(), "information": known, "units": units}


def entropy(counts, dim):
    """Counts or shares -> the entropy over `dim` in bits."""
    return torch.special.entr(counts / counts.sum(dim, keepdim=True)).sum(dim) / math.log(2)


def information(wins, label):
    """wins (K, N, F), 0 or 1; label (N,) -> I(winner; label) in bits for each unit (F,); counts (K, labels, F)."""
    counts = wins.new_zeros(len(wins), int(label.max()) + 1, wins.size(2)).index_add_(1, label.to(wins.device), wins)
    return entropy(counts.sum(1), 0) + entropy(counts.sum(0), 0) - entropy(counts.flatten(0, 1), 0), counts


def plain(value):
    """A state -> what JSON holds: of an array its distribution, 6 digits of a number, null for what is not finite."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items() if not key.startswith("_")}
    if isinstance(value, np.ndarray):
        quantiles = {f"q{q:02}": np.percentile(value, q) for q in (5, 25, 50, 75, 95)}
        return plain({"mean": value.mean(), "sd": value.std()} | quantiles)
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def findings(before, now, mixed=None):
    """A layer's figures before and now, and of the earlier branches on today's inputs -> what they say, in lines."""
    for name, bank in now.get("neurons", {}).items():
        past, share = (100 * state["neurons"][name]["beyond_maximum"]["mean"] for state in (before, now))
        x, omega, linear = (bank[key] for key in ("abs_x", "omega", "linearised"))
        said = f"{share:.1f} % of phases past pi/2 (before {past:.1f}), |x| {x['q50']:.2f}, 95 % below {x['q95']:.2f}"
        yield f"{name}: {said}, omega {omega['mean']:.2f} +- {omega['sd']:.2f}, {100 * linear:.1f} % linearised"
    if "events" in now:
        past, rate = (100 * state["event_rate"]["mean"] for state in (before, now))
        tokens = [f"{line['token']!a} {100 * line['rate']:.0f}" for line in now["events"]]
        ends = f"most {', '.join(tokens[:SHOWN])}; least {', '.join(tokens[-SHOWN:])}"
        yield f"events: {rate:.0f} % fire (before {past:.0f}), {ends}"
    if "information" in now:
        used, old = (state["effective_branches"]["mean"] for state in (now, before))
        yield f"effective branches {used:.2f} (before {old:.2f}), {100 * now['dead']:.1f} % of branches dead"
    for what, known in now.get("information", {}).items():
        bits, old, same = (state["information"][what]["bits"]["mean"] for state in (now, before, mixed))
        said = f"{bits:.3f} of {now['winner_entropy']['mean']:.2f} bit about the {what} (before {old:.3f}"
        yield f"branches tell {said}, those on today's inputs {same:.3f}, shuffled {known['shuffled']['mean']:.4f})"
    for unit in now.get("units", []):
        pulls = (" ".join(f"{text!a} {100 * share:.0f}" for text, share in branch) for branch in unit["tokens"])
        yield f"unit {unit['unit']}, {unit['bits']:.2f} of {unit['entropy']:.2f} bit, % won: {' | '.join(pulls)}"


def violins(axes, states, title, ylabel, *keys):
    """By layer the distribution of the array that a state has under `keys`, its median, and its mean in numbers."""
    labels = places = np.arange(1, len(states["now"]) + 1)
    for i, (name, values) in enumerate(states.items()):
        for key in keys:
            values = [value[key] for value in values]
        labels = [f"{at}\n{v.mean():.2f}" if len(places) < 9 else at for at, v in zip(labels, values, strict=True)]
        values = [v if v.size < 20_000 else np.random.default_rng(0).choice(v, 20_000) for v in values]  # for speed
        at, width = places + 0.84 * ((i + 0.5) / len(states) - 0.5), 0.8 / len(states)
        for body in axes.violinplot(values, at, widths=width, showextrema=False)["bodies"]:
            body.set(facecolor=COLOURS[name], alpha=0.6)
        axes.plot(at, [np.median(v) for v in values], "o", color=COLOURS[name], markersize=4)
    axes.set_xticks(places, labels, fontsize=8)
    axes.set(xlabel="layer, and means", ylabel=ylabel, title=title)
    if "π/2" in title:
        axes.axhline(math.pi / 2, color="#D55E00", linestyle="--")


def atlas(part, states, name):
    """Neurons evenly spaced in the order of ω, over the layer's inputs: thick over 98 % of its own."""
    layers = np.unique(np.linspace(0, len(states["now"]) - 1, SHOWN).round().astype(int))
    rows = part.subplots(len(layers), SHOWN, squeeze=False, sharex="row", sharey="row")
    for row, layer in zip(rows, layers, strict=True):
        before, now = (states[state][layer]["neurons"][name] for state in ("before", "now"))
        x, order = now["_x"], now["omega"].argsort()  # (some, F), (F,)
        low, high = torch.from_numpy(np.quantile(x.cpu(), (0.01, 0.99), axis=0))
        wide = torch.linspace(low.min(), high.max(), 200)[:, None].expand(-1, x.size(1))
        old, new = (bank["_neuron"](wide.to(x.device)).cpu() for bank in (before, now))  # (200, F)
        used = new.where((wide >= low) & (wide <= high), math.nan)
        for axes, i in zip(row, order[np.linspace(0, len(order) - 1, SHOWN).astype(int)], strict=True):
            for y, state, width, line in ((old, "before", 1, "-"), (new, "now", 1, ":"), (used, "now", 2.5, "-")):
                axes.plot(wide[:, i], y[:, i], line, color=COLOURS[state], linewidth=width)
            axes.set_title(f"ω = {now['omega'][i]:.2f}, φ = {now['phi'][i]:.2f}", fontsize=8)
        row[0].set_ylabel(f"layer {layer + 1}: y")


def sharpness(axes, states, meta):
    """β by layer: before, as the run's metrics.jsonl has it, if it is there, and now."""
    start, end = ([state["beta"].mean() for state in states[name]] for name in ("before", "now"))
    lines = [{"step": meta["began"], "beta": start}, {"step": meta["iter_num"], "beta": end}]
    with contextlib.suppress(OSError, ValueError):  # of a last line that was cut off
        logged = [json.loads(line) for line in meta["path"].with_name("metrics.jsonl").read_text().splitlines()]
        lines[1:1] = [m for m in logged if m.get("beta") and meta["began"] < m["step"] < meta["iter_num"]]
    axes.set_prop_cycle(color=colormaps["viridis"](np.linspace(0, 0.9, len(end))))
    axes.plot([line["step"] for line in lines], [line["beta"] for line in lines], label=range(1, len(end) + 1))
    axes.set(xlabel="step", ylabel="β, mean over units", title="Sharpness")
    axes.legend(title="layer", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)


def page(file, title, names, states, meta, lines):
    """Draw the page into an open file, as PNG. names: of the states; lines: of text."""
    rows, first, tall = [], states["now"][0], 1.3 * min(SHOWN, len(states["now"]))
    for bank in first.get("neurons", {}):  # rows: (heading, inches, arguments of violins or functions of axes)
        row = [("Frequency", "ω, radians a unit of x", "omega"), ("Phase shift", "φ, radians", "phi")]
        row += [("Phase, and π/2", "|ωx + φ|, radians", "abs_phase"), ("As a wave", "share past π/2", "beyond_maximum")]
        rows += [(f"{bank}: what was learned, and its use", 3, [(*p[:2], "neurons", bank, p[2]) for p in row])]
        rows += [(f"{bank}: y by x in order of ω, thick where used", tall, lambda p, bank=bank: atlas(p, states, bank))]
    if "event_rate" in first:
        rows[0][2].append(("Events", "share of features that fire", "event_rate"))
    if "information" in first:
        row = [("Effective branches of a unit", "exp(entropy of usage)", "effective_branches")]
        row += [("Weights of a unit", "cosine of two branches", "cosine"), lambda axes: sharpness(axes, states, meta)]
        told = [(f"With the {what}", "bits", "information", what, "bits") for what in first["information"]]
        rows += [("How branches compete", 3, row), ("Mutual information of a unit's winner", 3, told)]
    text = [part for line in lines for part in textwrap.wrap(line, 200, subsequent_indent=" " * 9)]
    style = {"va": "bottom", "fontsize": 7, "family": "monospace", "parse_math": False}
    rows += [("In words", 0.4 + 0.124 * len(text), lambda part: part.text(0.01, 0, "\n".join(text), **style))]
    figure = Figure(figsize=(13, 0.4 + sum(row[1] for row in rows)), layout="constrained")
    head, *parts = figure.subfigures(len(rows) + 1, 1, height_ratios=[0.4, *(row[1] for row in rows)])
    head.text(0.01, 0.5, title, fontsize=12, va="center")
    patches = [Patch(color=COLOURS[state], alpha=0.6, label=names[state]) for state in states]
    head.legend(handles=patches, loc="center right", ncols=3, frameon=False)
    for part, (heading, _, content) in zip(parts, rows, strict=True):
        part.suptitle(heading, x=0.01, ha="left", fontsize=11, weight="bold")
        panels = [] if callable(content) else part.subplots(1, len(content), sharey="information" in content[0])
        for axes, what in zip(panels, content, strict=True) if len(panels) else [(part, content)]:
            what(axes) if callable(what) else violins(axes, states, *what)
    figure.savefig(file, dpi=130, format="png")


@errors.script
@torch.no_grad()
def main(argv=None):
    config = configurator.read_settings(AnalyzeConfig, sys.argv[1:] if argv is None else argv, __doc__)
    device, neuron = pick_device(config.device), custom_neuron.load_neuron(config.neuron) if config.neuron else None
    model, meta = load(config.out_dir, device, neuron)
    before = earlier(config, model, meta, neuron, device)
    idx, texts, labels = read_text(config, model, meta)
    dendritic, step, states = model.config.mlp == "dendritic", meta["iter_num"], {}
    pairs = {"before": (before, before)} | ({"mixed": (before, model)} if dendritic else {}) | {"now": (model, model)}
    for state, (network, source) in pairs.items():
        given = {block.mlp: [] for block in source.transformer.h}
        with recording(given):
            for part in idx.split(max(1, 4096 // idx.size(1))):
                source.hidden(part.to(device))
        inputs, study = map(torch.cat, given.values()), branches if dendritic else waves
        states[state] = [study(b.mlp, x, texts, labels) for b, x in zip(network.transformer.h, inputs, strict=True)]
    for layer in zip(states["before"], states["now"], strict=True):
        banks = zip(*(state.get("neurons", {}).values() for state in layer), strict=True)
        for (a, b), k in itertools.product(banks, ("omega", "phi")):
            b[f"{k}_moved"] = {"mean_abs": abs(b[k] - a[k]).mean(), "correlation": np.corrcoef(a[k], b[k])[0, 1]}
    layers = [plain(dict(zip(states, layer, strict=True))) for layer in zip(*states.values(), strict=True)]
    lines = [f"layer {n}  {line}" for n, layer in enumerate(layers, 1) for line in findings(**layer)]
    report = {"checkpoint": str(meta["path"]), "step": step, "model": model.describe(), "before": meta["before"]}
    report |= {"val_loss": meta["best_val_loss"], "tokens": idx.numel(), "findings": lines, "layers": layers}
    title = f"{meta['path'].absolute().parent.name}, step {step}, validation loss {meta['best_val_loss']:.3f}"
    names = {"before": meta["before"], "mixed": "its branches on today's inputs", "now": f"step {step}"}
    to = Path(config.to or meta["path"].parent)
    with atomic_write(to / "analysis.png") as file:
        page(file, title, names, states, meta, lines)
    write_json(to / "analysis.json", plain(report))
    print(*lines, f"written   {to / 'analysis.png'} and analysis.json", sep="\n")


if __name__ == "__main__":
    main()
