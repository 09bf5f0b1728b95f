"""Times appending to an archive and opening it: `python -m tests.benchmarks.archive [--sizes 100,1000,10000]`.

One archive grows through the sizes. At each: the mean append over the last outcomes, opening as a reader after a clean
close, and with --rebuild opening without the index, which reads every step. Outcomes are of realistic size: four
replicas, 4 kB of JSON, 100 kB of parameters.
"""

import argparse
import dataclasses
import os
import pathlib
import shutil
import tempfile
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import numpy as np

from asiarch_jax import config
from asiarch_jax.shell.archive import OrbaxArchive
from tests import samples


def grown(workdir: pathlib.Path, size: int, parameters: np.ndarray, template: tuple) -> float:
  """Appends until the archive holds `size` outcomes; returns the mean seconds of the last fifty or fewer."""
  seconds = []
  with OrbaxArchive.open(workdir, config.Experiment(), 'benchmark') as archive:
    start = len(archive.outcomes())
    for number in range(start, size):
      outcome = _renumbered(template[number % len(template)], number)
      before = time.perf_counter()
      archive.append(outcome, {'params/all': parameters, 'params/scale': np.float32(number)})
      seconds.append(time.perf_counter() - before)
  return float(np.mean(seconds[-50:]))


def opened(workdir: pathlib.Path) -> tuple[float, int]:
  """Returns the seconds to open for reading and to have every outcome, and how many there are."""
  before = time.perf_counter()
  with OrbaxArchive.open_read_only(workdir) as archive:
    count = len(archive.outcomes())
  return time.perf_counter() - before, count


def _renumbered(outcome, number):
  return dataclasses.replace(outcome, id=number)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--sizes', default='100,1000', help='numbers of outcomes, rising, separated by commas')
  parser.add_argument('--rebuild', action='store_true', help='also open without an index (reads every step)')
  parser.add_argument('--dir', default=None, help='where to make the archive; default the temporary folder')
  options = parser.parse_args()
  workdir = pathlib.Path(tempfile.mkdtemp(dir=options.dir))
  parameters = np.random.default_rng(0).normal(size=25_000).astype(np.float32)
  template = samples.archive(40)
  try:
    print(
      f'{"outcomes":>9} {"append ms":>10} {"open s":>8} {"ms/outcome":>11}'
      + (' without index s' if options.rebuild else '')
    )
    for size in (int(size) for size in options.sizes.split(',')):
      append = grown(workdir, size, parameters, template)
      seconds, count = opened(workdir)
      assert count == size
      row = f'{size:>9,} {append * 1e3:>10.1f} {seconds:>8.2f} {seconds / size * 1e3:>11.2f}'
      if options.rebuild:
        shutil.move(workdir / 'archive' / 'index', workdir / 'index')
        row += f' {opened(workdir)[0]:>15.2f}'
        shutil.move(workdir / 'index', workdir / 'archive' / 'index')
      print(row, flush=True)
  finally:
    shutil.rmtree(workdir)


if __name__ == '__main__':
  main()
