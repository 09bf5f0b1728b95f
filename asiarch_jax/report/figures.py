"""Figures of an archive: pure functions from outcomes to drawings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import cm, colors
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.ticker import FormatStrFormatter, MaxNLocator, NullLocator

from asiarch_jax.records import Entry, Outcome, Rejection, entries_of
from asiarch_jax.report import series
from asiarch_jax.report.curve import Curve
from asiarch_jax.report.drawing import (
  BAND,
  BLUE,
  DIVERGING,
  GRID,
  HALF,
  INK,
  MUTED,
  ORANGE,
  PAPER,
  TEAL,
  VIOLET,
  WHOLE,
  Drawing,
  label,
  style,
)
from asiarch_jax.report.series import verdict
from asiarch_jax.report.text import ranked


def progress(outcomes: Sequence[Outcome], baseline: str, pool: int, band: float | None) -> Drawing:
  """Returns the best so far and the pool's mean against cycles, in bits per byte and in fitness."""
  entries = {entry.id: entry for entry in entries_of(outcomes)}
  with style():
    figure = Figure(figsize=(WHOLE, 3.4), layout='constrained')
    left, right = figure.subplots(1, 2, sharex=True)
    panels = (
      (left, 'improvement', f'Improvement over {label(baseline)}, bits per byte'),
      (right, 'fitness', 'Fitness'),
    )
    for axes, measure, title in panels:
      axes.set_title(title)
      points = series.progress(outcomes, pool, measure)
      if not points.ids:
        _nothing(axes, 'nothing measured yet')
        continue
      ids, values = np.array(points.ids), np.array(points.values)
      if measure == 'improvement':
        _zero(axes, band)
      low = _floor(values)
      inside = values >= low
      marks = axes.scatter(
        ids[inside], values[inside], s=16, color=[_mark_color(entries[i]) for i in ids[inside]], linewidths=0, zorder=3
      )
      marks.set_urls([f'#outcome-{key}' for key in ids[inside]])
      if not inside.all():
        below = axes.scatter(
          ids[~inside], np.full((~inside).sum(), low), s=14, marker='v', color=ORANGE, zorder=3, clip_on=False
        )
        below.set_urls([f'#outcome-{key}' for key in ids[~inside]])
      axes.plot(ids, points.best, drawstyle='steps-post', color=BLUE, linewidth=1.6)
      axes.plot(ids, points.pool, color=VIOLET, linewidth=1.4, linestyle=(0, (4, 1.5)))
      top = max(values.max(), band or 0.0) if measure == 'improvement' else values.max()
      axes.set_ylim(low - 0.04 * (top - low or 1), top + 0.12 * (top - low or 1))
      _end_labels(axes, ids[-1], [(points.best[-1], 'best so far', BLUE), (points.pool[-1], 'pool mean', VIOLET)])
    for axes in (left, right):
      axes.set_xlabel('cycle')
      axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
  return Drawing(
    'progress',
    'Progress over cycles',
    f'Each dot is one measured entry (anchors left out): blue where its interval says better, orange where worse, grey '
    f'where it cannot be told. The solid line is the best so far, the dashed line the mean of the best {pool} by '
    'fitness. The best of many noisy numbers looks better than it is: believe the intervals, not the top line.'
    + (' The grey band is where copies of the baseline would land.' if band else ''),
    'Improvement and fitness of each entry against cycles, with the best so far and the mean of the pool.',
    figure,
    _tips(outcomes),
  )


def discoveries(curve: Curve, baseline: str, *, band: float | None = None, best: bool = False) -> Drawing:
  """Returns the cumulative count of candidates better than the baseline against what was spent, with its best fit.

  `best` adds the best improvement so far, over the `band` of copies of the baseline.
  """
  counts, compute, (unit, name) = curve.counts, curve.compute, curve.unit
  spent = np.array(curve.spent)
  with style():
    figure = Figure(figsize=(HALF, 4.5 if best else 3.6), layout='constrained')
    upper, *lower = figure.subplots(2 if best else 1, 1, sharex=True, squeeze=False)[:, 0]
    upper.set_title(f'Candidates better than {label(baseline)}, cumulative')
    if spent[-1] > 0:
      _counts(upper, curve)
      (lower or [upper])[0].set_xlabel(name)
    else:
      _nothing(upper, compute.nothing)
    for axes in lower:
      axes.set_title('Best improvement so far, bits per byte')
      _best_so_far(axes, spent / unit, np.array(counts.best), band)
  read = f'Solid: candidates that are {curve.word}. Dashed: those whose point estimate lies above zero. '
  if not curve.claimed:
    read += 'Dotted: how many intervals chance alone would put above zero (2.5 %) if none differed from the baseline. '
  if curve.drawn:
    read += f'The green line is what {curve.drawn[0].shape} expects, with its 95 % band. '
  if best:
    read += 'Below, the best point estimate until then: of many noisy numbers the best looks better than it is. '
  return Drawing(
    compute.name,
    compute.title,
    (read if compute.field == 'seconds' else '') + compute.spent,
    f'{counts.shown[-1]} candidates {curve.word} and {counts.estimated[-1]} better by point estimate after '
    f'{spent[-1] / unit:.4g} {name}.',
    figure,
  )


def _counts(axes: Axes, curve: Curve) -> None:
  counts, x = curve.counts, np.array(curve.spent) / curve.unit[0]
  shown, estimated, chance = counts.shown[-1], counts.estimated[-1], counts.chance[-1]
  ends: list[tuple[float, str, str]] = []
  top = float(max(estimated, shown, 1))
  for index, fit in enumerate(curve.drawn):
    at, lines = curve.along(fit.band)
    if not index:
      axes.fill_between(at, lines[1], lines[2], color=TEAL, alpha=0.13, linewidth=0)
      top = max(top, min(lines[2][-1], 2.0 * top))
      ends.append((lines[0][-1], fit.shape, TEAL))
    axes.plot(at, lines[0], color=TEAL, linewidth=0.8 if index else 1.3, linestyle='-' if not index else (0, (2, 2)))
  axes.step(x, counts.estimated, where='post', color=VIOLET, linewidth=1.4, linestyle=(0, (4, 1.5)))
  axes.step(x, counts.shown, where='post', color=BLUE, linewidth=1.8)
  ends += [(estimated, f'{estimated} by point estimate', VIOLET), (shown, f'{shown} {curve.brief}', BLUE)]
  if not curve.claimed:
    axes.step(x, counts.chance, where='post', color=MUTED, linewidth=1.0, linestyle=(0, (1, 1.5)))
    ends.append((chance, f'{chance:.1f} by chance', MUTED))
  axes.set_ylim(0, top * 1.1)
  axes.set_xlim(0, 1.01 * x[-1])
  axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
  _end_labels(axes, x[-1], ends)


def _best_so_far(axes: Axes, x: np.ndarray, best: np.ndarray, band: float | None) -> None:
  found = best[np.isfinite(best)]
  if not len(found) or x[-1] <= 0:
    _nothing(axes, 'nothing measured yet')
    return
  _zero(axes, band)
  low, high = min(-(band or 0.0), float(found.min())), max(band or 0.0, float(found.max()))
  margin = (high - low) or 1e-4
  axes.set_ylim(low - 0.06 * margin, high + 0.12 * margin)
  axes.step(x, best, where='post', color=BLUE, linewidth=1.6)
  _end_labels(axes, x[-1], [(best[-1], f'{best[-1]:+.4f}', BLUE)])


def losses(outcomes: Sequence[Outcome], baseline: str) -> Drawing:
  """Returns the loss curves of all entries, and the best three against the baseline at the same step and seed."""
  entries = list(entries_of(outcomes))
  base = next((entry for entry in entries if entry.proposal.name == baseline and entry.role == 'baseline'), None)
  best = [entry for entry in ranked(outcomes) if entry.role == 'candidate'][:3]
  palette = (BLUE, VIOLET, TEAL)
  with style():
    figure = Figure(figsize=(WHOLE, 3.9), layout='constrained')
    left, right = figure.subplots(1, 2)
    left.set_title('Training loss, nats a token')
    right.set_title(f'Loss minus that of {label(baseline)} at the same step and seed, nats a token')
    curves = [(entry, curve) for entry in entries if (curve := series.loss_curve(entry.training)) is not None]
    if not curves:
      _nothing(left, 'no training curve yet')
    bold = {entry.id: color for entry, color in zip(best[:1], palette, strict=False)}
    bold |= {entry.id: INK if entry is base else MUTED for entry in entries if entry.role != 'candidate'}
    ends = []
    for entry, curve in curves:
      color = bold.get(entry.id)
      if color is None:
        left.plot(curve.steps, curve.mean, color=MUTED, linewidth=0.6, alpha=0.35)
        continue
      left.plot(
        curve.steps,
        curve.mean,
        color=color,
        linewidth=1.5,
        zorder=3,
        linestyle='-' if entry is base or entry in best else (0, (4, 1.5)),
      )
      left.fill_between(curve.steps, curve.low, curve.high, color=color, alpha=0.13, linewidth=0)
      ends.append((curve.mean[-1], label(entry.proposal.name, 22), color))
    if curves:
      left.set_yscale('log')
      left.yaxis.set_major_locator(MaxNLocator(nbins=5))
      left.yaxis.set_minor_locator(NullLocator())
      left.yaxis.set_major_formatter(FormatStrFormatter('%.2g'))
      last = np.array([curve.mean[-1] for _, curve in curves])
      left.set_ylim(top=max(curve.mean[0] for _, curve in curves) * 1.02, bottom=last.min() * 0.96)
      _end_labels(left, max(curve.steps[-1] for _, curve in curves), ends)
    gaps = [
      (entry, gap)
      for entry in best
      if base is not None and (gap := series.loss_gap(entry.training, base.training)) is not None
    ]
    if not gaps:
      _nothing(right, 'no candidate to compare yet')
    else:
      right.axhline(0, color=INK, linewidth=0.9)
      for (_, gap), color in zip(gaps, palette, strict=False):
        right.fill_between(gap.steps, gap.low, gap.high, color=color, alpha=0.13, linewidth=0)
        right.plot(gap.steps, gap.mean, color=color, linewidth=1.6)
      settled = np.concatenate([np.r_[gap.low, gap.high][len(gap.steps) // 5 :] for _, gap in gaps])
      margin = max(1e-3, 0.1 * float(np.ptp(np.r_[settled, 0.0])))
      right.set_ylim(min(0.0, float(settled.min())) - margin, max(0.0, float(settled.max())) + margin)
      _end_labels(
        right,
        gaps[0][1].steps[-1],
        [
          (gap.mean[-1], label(entry.proposal.name, 22), color)
          for (entry, gap), color in zip(gaps, palette, strict=False)
        ],
      )
    for axes in (left, right):
      axes.set_xlabel('optimiser step')
  return Drawing(
    'losses',
    'Loss curves',
    'Left: mean over seeds at the chosen learning rate; thin grey lines are the other candidates, bands span the '
    'seeds. Right: the same for the three best by held-out text, with the baseline taken off seed by seed, so '
    'that luck which both share cancels. Below zero is better. Training loss is shown for its course; '
    'the leaderboard is judged on held-out text.',
    f'Training loss of {len(curves)} entries by step, and the difference of the best candidates to {label(baseline)}.',
    figure,
  )


def failures(outcomes: Sequence[Outcome]) -> Drawing:
  """Returns the share of proposals that ended at each stage, of those that reached it."""
  rows = series.stages(outcomes)
  with style():
    figure = Figure(figsize=(HALF, 1.0 + 0.34 * max(len(rows), 3)), layout='constrained')
    axes = figure.subplots()
    axes.set_title('Share of the proposals that reached a stage and ended there')
    if not rows:
      _nothing(axes, 'no proposal was rejected')
    else:
      y = -np.arange(len(rows))
      share = [100 * row.count / row.reached for row in rows]
      axes.barh(y, share, height=0.62, color=MUTED, alpha=0.55, linewidth=0)
      axes.hlines(y, [100 * row.low for row in rows], [100 * row.high for row in rows], color=INK, linewidth=1.1)
      axes.set_yticks(y, [label(row.name) for row in rows])
      axes.tick_params(axis='y', labelcolor=INK)
      for at, row in zip(y, rows, strict=True):
        axes.text(100 * row.high + 1, float(at), f'{row.count} of {row.reached}', va='center', fontsize=8)
      axes.set_xlim(0, min(118, 100 * max(row.high for row in rows) + 16))
      axes.set_xlabel('per cent, with 95 % interval')
      axes.grid(axis='y', visible=False)
      axes.spines['left'].set_visible(False)
  described = '; '.join(f'{label(row.name)} {row.count} of {row.reached}' for row in rows) or 'none'
  return Drawing(
    'failures',
    'Where proposals ended',
    'Stages from first to last; baselines are not counted. A bar is the share of proposals that ended there among '
    'those that came so far; the line over it is the 95 % interval of that share.',
    f'Rejections by stage: {described}.',
    figure,
  )


def lineage(outcomes: Sequence[Outcome], baseline: str) -> Drawing:
  """Returns the tree of descent, coloured by improvement, the line to the best drawn strong."""
  nodes = {node.outcome.id: node for node in series.lineage(outcomes)}
  rows = [node.row for node in nodes.values()] or [0.0]
  depth = max((node.depth for node in nodes.values()), default=0)
  pitch = min(0.30, max(0.055, 9.0 / (max(rows) - min(rows) + 1)))
  height = max(2.2, 1.1 + pitch * (max(rows) - min(rows) + 1))
  values = np.array([v for node in nodes.values() if math.isfinite(v := _improvement(node.outcome))] or [0.0])
  reach = max(1e-4, float(np.percentile(np.abs(values), 95)))
  norm = colors.Normalize(-reach, reach, clip=True)
  best = next((entry.id for entry in ranked(outcomes) if entry.role == 'candidate'), None)
  strong = _ancestry(best, nodes)
  with style():
    figure = Figure(figsize=(WHOLE, height), layout='constrained')
    axes = figure.subplots()
    axes.set_axis_off()
    if not nodes:
      _nothing(axes, 'the archive is empty')
    for on_path in (False, True):
      paths = [
        _branch(nodes[node.parent], node)
        for node in nodes.values()
        if node.parent is not None and (node.outcome.id in strong) == on_path
      ]
      axes.add_collection(
        PathCollection(
          paths,
          facecolors='none',
          edgecolors=INK if on_path else MUTED,
          linewidths=1.6 if on_path else 0.6,
          alpha=1 if on_path else 0.5,
        )
      )
    size = 52 if pitch > 0.15 else 26 if pitch > 0.08 else 14
    for marker, chosen in _kinds(nodes.values()).items():
      if not chosen:
        continue
      x, y = [node.depth for node in chosen], [-node.row for node in chosen]
      if marker == 'x':
        marks = axes.scatter(x, y, s=size * 0.4, marker='x', color=MUTED, linewidths=0.8, zorder=3)
      else:
        shown = [isinstance(node.outcome, Entry) and verdict(node.outcome) == 'better' for node in chosen]
        marks = axes.scatter(
          x,
          y,
          s=size,
          marker=marker,
          zorder=4,
          color=[DIVERGING(norm(v)) if math.isfinite(v := _improvement(node.outcome)) else GRID for node in chosen],
          edgecolors=[INK if yes else MUTED for yes in shown],
          linewidths=[size / 35 + 0.2 if yes else 0.4 for yes in shown],
        )
      marks.set_urls([f'#outcome-{node.outcome.id}' for node in chosen])
    leaders = [entry.id for entry in ranked(outcomes) if entry.role == 'candidate'][: 40 if pitch >= 0.2 else 5]
    for node in nodes.values():
      named = node.outcome.id in leaders or (node.parent is None and isinstance(node.outcome, Entry))
      if named:
        axes.annotate(
          f'{node.outcome.id} {label(node.outcome.proposal.name, 24)}',
          (node.depth, -node.row),
          (6, 3),
          textcoords='offset points',
          fontsize=7,
          color=INK,
          zorder=5,
          fontweight='bold' if node.outcome.id == best else 'normal',
          bbox={'facecolor': PAPER, 'alpha': 0.7, 'linewidth': 0, 'pad': 0.4},
        )
    axes.set_xlim(-0.15, depth + 0.9)
    axes.set_ylim(-max(rows) - 0.8, -min(rows) + 0.8)
    if nodes:
      bar = figure.colorbar(
        cm.ScalarMappable(norm, DIVERGING),
        ax=axes,
        orientation='horizontal',
        location='top',
        fraction=0.5 / height,
        aspect=46,
        shrink=0.42,
        anchor=(0, 1),
        extend='both',
      )
      bar.outline.set_visible(False)  # type: ignore[operator]
      bar.ax.set_title(f'worse than {label(baseline)}  ←  bits per byte  →  better', fontsize=8)
      bar.ax.tick_params(length=0, labelsize=7.5)
  return Drawing(
    'lineage',
    'Lineage',
    'Generations run from left to right, each outcome beside the children it bred. Colour is the improvement over '
    f'{baseline}; a strong outline means the interval excludes zero. Squares are baselines, diamonds anchors, crosses '
    'proposals that were rejected. The strong line leads to the best. Point at a mark for its name, click it for all '
    'about it.',
    f'Tree of {len(nodes)} outcomes over {depth + 1 if nodes else 0} generations.',
    figure,
    _tips(outcomes),
  )


def leaderboard(outcomes: Sequence[Outcome], baseline: str, band: float | None, limit: int = 25) -> Drawing:
  """Returns the best entries with the interval of each improvement, as a picture."""
  rows = [entry for entry in ranked(outcomes) if entry.evidence is not None][:limit]
  with style():
    figure = Figure(figsize=(HALF * 1.25, 1.0 + 0.24 * max(len(rows), 3)), layout='constrained')
    axes = figure.subplots()
    axes.set_title(f'Improvement over {label(baseline)}, bits per byte, with 95 % interval')
    if not rows:
      _nothing(axes, 'nothing to compare yet')
    else:
      _zero_upright(axes, band)
      low, high = interval_range(rows, band)
      for at, entry in enumerate(rows):
        evidence = entry.evidence
        assert evidence is not None
        color = _mark_color(entry)
        axes.hlines(-at, max(evidence.low, low), min(evidence.high, high), color=color, linewidth=1.8)
        axes.plot(np.clip(evidence.improvement, low, high), -at, 'o', color=color, markersize=4.5)
      axes.set_yticks([-at for at in range(len(rows))], [label(entry.proposal.name) for entry in rows])
      axes.tick_params(axis='y', labelcolor=INK)
      axes.set_xlim(low, high)
      axes.set_ylim(-len(rows) + 0.4, 0.6)
      axes.grid(axis='y', visible=False)
  return Drawing(
    'leaderboard',
    'Leaderboard',
    'Best held-out text first. Blue: measured better; orange: measured worse; grey: cannot be told.',
    f'The {len(rows)} best entries with intervals.',
    figure,
  )


def interval_range(entries: Sequence[Entry], band: float | None) -> tuple[float, float]:
  """Returns the span in bits per byte that shows the intervals worth seeing: a hopeless entry may leave it."""
  found = [entry.evidence for entry in entries if entry.evidence is not None]
  middles = np.array([evidence.improvement for evidence in found if math.isfinite(evidence.improvement)] or [0.0])
  lows = np.array([evidence.low for evidence in found if math.isfinite(evidence.low)] or [0.0])
  highs = np.array([evidence.high for evidence in found if math.isfinite(evidence.high)] or [0.0])
  least = 1.2 * (band or 0.0) + 1e-4
  high = max(min(float(highs.max()), 2.5 * float(middles.max())), least)
  low = min(max(float(lows.min()), -high), -least)
  return 1.04 * low, 1.04 * high


def _mark_color(entry: Entry) -> str:
  return {'better': BLUE, 'worse': ORANGE}.get(verdict(entry), MUTED)


def _improvement(outcome: Outcome) -> float:
  return series.improvement_of(outcome) if isinstance(outcome, Entry) else math.nan


def _tips(outcomes: Sequence[Outcome]) -> dict[int, str]:
  tips = {}
  for outcome in outcomes:
    tip = f'#{outcome.id} {label(outcome.proposal.name, 60)}'
    if isinstance(outcome, Rejection):
      tip += f'\nrejected at {label(outcome.stage)}: {label(outcome.reason, 120)}'
    elif outcome.evidence is not None:
      e = outcome.evidence
      tip += f'\n{e.improvement:+.4f} bits per byte ({e.low:+.4f} to {e.high:+.4f}), {verdict(outcome)}'
    else:
      tip += f'\n{outcome.role}'
    tips[outcome.id] = tip
  return tips


def _kinds(nodes: Any) -> dict[str, list[series.Node]]:
  kinds: dict[str, list[series.Node]] = {'x': [], 's': [], 'D': [], 'o': []}
  for node in nodes:
    if isinstance(node.outcome, Rejection):
      kinds['x'].append(node)
    else:
      kinds[{'baseline': 's', 'anchor': 'D'}.get(node.outcome.role, 'o')].append(node)
  return kinds


def _ancestry(key: int | None, nodes: Mapping[int, series.Node]) -> set[int]:
  path: set[int] = set()
  while key is not None:
    path.add(key)
    key = nodes[key].parent
  return path


def _branch(parent: series.Node, child: series.Node) -> Path:
  x0, y0, x1, y1 = parent.depth, -parent.row, child.depth, -child.row
  middle = (x0 + x1) / 2
  return Path([(x0, y0), (middle, y0), (middle, y1), (x1, y1)], [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])


def _floor(values: np.ndarray) -> float:
  """Returns the lowest value to draw in place: a few hopeless entries must not flatten all others."""
  top, middle = float(values.max()), float(np.median(values))
  spread_up = max(top - middle, 0.25 * (top - float(values.min())))
  return max(float(values.min()), middle - 3.0 * spread_up)


def _zero(axes: Axes, band: float | None) -> None:
  if band:
    axes.axhspan(-band, band, color=BAND, linewidth=0, zorder=0)
  axes.axhline(0, color=INK, linewidth=0.9, zorder=1)


def _zero_upright(axes: Axes, band: float | None) -> None:
  if band:
    axes.axvspan(-band, band, color=BAND, linewidth=0, zorder=0)
  axes.axvline(0, color=INK, linewidth=0.9, zorder=1)


def _nothing(axes: Axes, text: str) -> None:
  axes.set_xticks([])
  axes.set_yticks([])
  axes.spines[:].set_visible(False)
  axes.text(0.5, 0.5, text, ha='center', va='center', color=MUTED, transform=axes.transAxes)


def _end_labels(axes: Axes, x: float, ends: Sequence[tuple[float, str, str]]) -> None:
  """Writes each line's name at its end, in its colour, pushed apart so that none covers another."""
  shown = [end for end in ends if math.isfinite(end[0])]
  to_unit = axes.transScale + axes.transLimits
  heights = [float(to_unit.transform((x, value))[1]) for value, _, _ in shown]
  spec = axes.get_subplotspec()
  inches = 0.78 * axes.figure.get_figure(root=True).get_size_inches()[1] / (spec.get_gridspec().nrows if spec else 1)
  gap = 11.5 / 72 / inches
  for (_, text, color), height in zip(shown, spread(heights, gap), strict=True):
    axes.annotate(
      text,
      (1.0, height),
      (4, 0),
      xycoords='axes fraction',
      textcoords='offset points',
      va='center',
      color=color,
      fontsize=8,
      annotation_clip=False,
    )


def spread(heights: Sequence[float], gap: float) -> list[float]:
  """Returns the heights moved as little as keeps them at least `gap` apart, their order kept.

  >>> spread([0.5, 0.5, 0.9], 0.25)
  [0.375, 0.625, 0.9]
  """
  order = sorted(range(len(heights)), key=lambda index: heights[index])
  groups: list[list[int]] = []
  middles: list[float] = []
  for index in order:
    groups.append([index])
    middles.append(heights[index])
    while len(groups) > 1 and middles[-1] - middles[-2] < gap * (len(groups[-1]) + len(groups[-2])) / 2:
      last = groups.pop()
      groups[-1] += last
      middles.pop()
      middles[-1] = sum(heights[member] for member in groups[-1]) / len(groups[-1])
  placed = list(heights)
  for members, middle in zip(groups, middles, strict=True):
    for position, member in enumerate(members):
      placed[member] = middle + gap * (position - (len(members) - 1) / 2)
  return placed
