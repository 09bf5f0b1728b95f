"""Decoding with any module built on these functions: their states are carried from one piece of text to the next.

    with carried(None) as tape:
      y_BTD = mixer.apply(variables, x_BTD)        # the prompt
    with carried(tape.states) as tape:
      y_B1D = mixer.apply(variables, next_B1D)     # one token more, or several
    states = tape.states

Inside, the calls of `delta_rule` and `causal_conv` are numbered in their order. Each starts from the state that the
call of its number left; in the first piece (states None) as it would otherwise. A piece of one token takes the step
forms. Under `jit` make the states an argument and a result. What a module remembers by other means is not carried, so
compare once with the whole text. Loops that trace their body apart (`lax.scan`, `nn.scan`, remat) cannot hold such
calls.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Sequence

import jax

Array = jax.Array


@dataclasses.dataclass
class Tape:
  """The states that a piece begins with, None for the first piece, and those that it left so far."""

  begins: tuple[Array, ...] | None
  left: list[Array] = dataclasses.field(default_factory=list)

  @property
  def states(self) -> tuple[Array, ...]:
    """What the next piece begins with."""
    return tuple(self.left)

  def begin(self, given: Array | None) -> Array | None:
    """Returns the state that the next call begins with; `given` is its own, for the first piece.

    Raises:
      ValueError: the piece makes more calls than the one before.
    """
    if self.begins is None:
      return given
    if len(self.left) >= len(self.begins):
      raise ValueError(
        f'the module makes more than the {len(self.begins)} calls whose states it left; every piece must make the same'
      )
    return self.begins[len(self.left)]


_TAPE: contextvars.ContextVar[Tape | None] = contextvars.ContextVar('tape', default=None)


def current() -> Tape | None:
  """Returns the tape of the piece that is being computed, None outside."""
  return _TAPE.get()


@contextlib.contextmanager
def carried(states: Sequence[Array] | None) -> Iterator[Tape]:
  """Carries states from the piece before, None for the first; the tape that it gives holds them for the next.

  Raises:
    ValueError: the piece makes more or fewer calls than the one before.
  """
  tape = Tape(None if states is None else tuple(states))
  token = _TAPE.set(tape)
  try:
    yield tape
  finally:
    _TAPE.reset(token)
  if tape.begins is not None and len(tape.left) < len(tape.begins):
    raise ValueError(
      f'the module made {len(tape.left)} calls and has {len(tape.begins)} states; every piece must make the same'
    )
