"""What a proposal must define, and the legend of axis letters.

A proposal is one file of Flax Linen source that defines

    class Mixer(nn.Module):
      width: int                      # D of input and output
      heads: int                      # H; divides width
      dtype: Any = jnp.float32        # compute type; parameters stay float32

      @nn.compact
      def __call__(self, x_BTD): ...  # returns y_BTD in the same dtype

It may import what `checks.source.ALLOWED_IMPORTS` lists and nothing else. Its variables are parameters only, but for
two collections that it may sow: `losses` (scalar auxiliary losses, added to the training loss) and `diagnostics`
(scalars for the analyst). It has at least one parameter. It draws random numbers for its parameters only.

Axes: B batch, T tokens, D width, H heads, K key size, V value size, C chunk, N chunks, R replicas, Y vocabulary,
F feed-forward width, W taps of a convolution, P paths.
"""

from __future__ import annotations

import dataclasses
import linecache
import sys
import types
from typing import Any

import jax.numpy as jnp

from asiarch_jax import config

SOWN = ('losses', 'diagnostics')


@dataclasses.dataclass(frozen=True)
class MixerSpec:
  """The sizes that a host gives to a mixer: exactly its constructor's arguments."""

  width: int
  heads: int
  dtype: Any


def spec_of(model: config.Model) -> MixerSpec:
  """Returns the sizes that the host of `model` gives to each mixer."""
  return MixerSpec(model.width, model.heads, jnp.dtype(model.dtype))


def load(source: str, name: str = 'mixer') -> type:
  """Returns the class `Mixer` that `source` defines, by executing it: called in a worker only.

  Raises:
    AttributeError: the source defines no `Mixer`.
    Exception: whatever the source itself raises.
  """
  module = types.ModuleType(f'proposal_{name}')
  sys.modules[module.__name__] = module  # dataclasses look their module up
  # Tracebacks quote the lines that they name: what a repair starts from.
  linecache.cache[f'{name}.py'] = (len(source), None, source.splitlines(keepends=True), f'{name}.py')
  exec(compile(source, f'{name}.py', 'exec', dont_inherit=True), module.__dict__)
  return module.Mixer


def build(mixer: type, spec: MixerSpec) -> Any:
  """Returns the Linen module of `mixer` at the sizes of `spec`, under one name wherever it is: alone or in a host."""
  return mixer(width=spec.width, heads=spec.heads, dtype=spec.dtype, name='mixer')
