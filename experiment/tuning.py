"""Where each arm is tuned: the points of the sweep that its tuning seeds run, and the one that is taken."""

import statistics
from dataclasses import dataclass, field

from experiment.ledger import Ledger, Run
from experiment.study import Point, Study


@dataclass(frozen=True)
class Tuning:
    """
    Losses of an arm on the tuning half, one a tuning seed, infinite where it diverged, by point of the sweep.

    losses: of the points with all tuning seeds, among which the best is chosen. partly: of those with fewer: with
    --finalists the points that the first seed left behind, and what is not finished.
    """

    losses: dict[Point, list[float]]
    partly: dict[Point, list[float]] = field(default_factory=dict)

    def mean(self, point: Point) -> float:
        """Mean over the tuning seeds; NaN where not all of them are finished."""
        return statistics.mean(self.losses.get(point, [float("nan")]))

    def best(self, key_number: int | None = None, value: object = None) -> Point | None:
        """The point with the lowest finite mean, among those that have `value` for the swept key of this number."""
        fits = [point for point in self.losses if key_number is None or point[key_number] == value]
        return min((point for point in fits if self.mean(point) < float("inf")), key=self.mean, default=None)

    def lead(self) -> list[float]:
        """
        By how much the best point is ahead of the second best, by tuning seed; [] where there is no second.

        Points that differ in a key which the arm does not read are one: they have the same losses.
        """
        ranked = sorted((point for point in self.losses if self.mean(point) < float("inf")), key=self.mean)
        distinct = list(dict.fromkeys(tuple(self.losses[point]) for point in ranked))
        if len(distinct) < 2:
            return []
        best, second = distinct[:2]
        return [behind - ahead for ahead, behind in zip(best, second, strict=True)]


def read_tuning(study: Study, ledger: Ledger, runs: list[Run]) -> dict[str, Tuning]:
    """Losses of the tuning runs that are finished, by arm."""
    losses = {arm.name: {} for arm in study.arms}
    for run in runs:
        if record := ledger.finished(run):
            loss = float("inf") if record["loss"] is None else record["loss"]
            losses[run.arm.name].setdefault(run.point, []).append(loss)
    wanted, tunings = len(study.seeds["tuning"]), {}
    for name, found in losses.items():
        whole = {point: values for point, values in found.items() if len(values) == wanted}
        partly = {point: values for point, values in found.items() if len(values) < wanted}
        tunings[name] = Tuning(whole, partly)
    return tunings


def opening_runs(study: Study, runs: list[Run]) -> list[Run]:
    """The tuning runs from which the finalists are chosen: the first seed's, the first of `runs`. Without, all."""
    if study.options.finalists is None:
        return runs
    return [run for run in runs if run.seed == study.seeds["tuning"][0]]


def final_runs(study: Study, ledger: Ledger, runs: list[Run]) -> list[Run]:
    """
    The tuning runs that an arm's choice rests on: first all of the first seed, then of further ones those at finalists.

    The finalists are the --finalists=K points at which the arm's loss with the first seed is lowest, of the whole grid
    and of each part that --also names: one round of successive halving (Jamieson and Talwalkar, 2016), with the same K
    for each arm. Without --finalists all runs are.
    """
    if study.options.finalists is None:
        return runs
    opening = opening_runs(study, runs)
    losses = {arm.name: {} for arm in study.arms}
    for run in opening:
        record = ledger.finished(run)
        if record and record["loss"] is not None:
            losses[run.arm.name][run.point] = record["loss"], run.key
    chosen = {name: finalists(study, found) for name, found in losses.items()}
    return opening + [run for run in runs[len(opening) :] if run.point in chosen[run.arm.name]]


def finalists(study: Study, losses: dict[Point, tuple[float, str]]) -> set[Point]:
    """
    The points that go on, from an arm's (loss, run's key) with the first tuning seed.

    Points of one key, which differ in what the arm does not read, are one run: they go on together, and count once.
    """
    chosen = set()
    for place in (None, *study.also):
        fits = [point for point in losses if place is None or point[list(study.swept).index(place[0])] == place[1]]
        ranked = list(dict.fromkeys(losses[point] for point in sorted(fits, key=losses.get)))
        chosen.update(point for point in fits if losses[point] in ranked[: study.options.finalists])
    return chosen


def take_points(study: Study, tunings: dict[str, Tuning], place: tuple[str, object] | None) -> dict[str, Point | None]:
    """The point at which each arm is reported: its best one, for --also among those with this (key, value)."""
    if not study.swept:
        return {arm.name: () for arm in study.arms}
    where = (list(study.swept).index(place[0]), place[1]) if place else ()
    return {name: tuning.best(*where) for name, tuning in tunings.items()}
