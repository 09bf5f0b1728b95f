"""A host that reads on from where it was: logits of new tokens without computing the old ones again."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from asiarch_jax.arch import lm
from pallas_kernels.stepping import carried

States = tuple[jax.Array, ...]


def read(
  host: lm.LanguageModel, parameters: Any, states: States | None, tokens_BT: jax.Array
) -> tuple[jax.Array, States]:
  """Returns the logits of the next tokens [B, T, Y] and the states after them; None before the first.

  Right for mixers that remember through `delta_rule` and `causal_conv` alone: compare once with the whole text.
  """
  with carried(states) as tape:
    logits_BTY = host.apply({'params': parameters}, tokens_BT)
  return logits_BTY, tape.states  # type: ignore[return-value]


def in_steps(host: lm.LanguageModel, parameters: Any, tokens_BT: Any, prompt: int) -> jax.Array:
  """Returns the logits of all tokens [B, T, Y], the first `prompt` read at once and the others one at a time.

  Raises:
    ValueError: `prompt` leaves no token for either.
  """
  tokens_BT = jnp.asarray(tokens_BT)
  if not 0 < prompt < tokens_BT.shape[1]:
    raise ValueError(f'{prompt} of {tokens_BT.shape[1]} tokens to read at once; leave at least one for each part')
  first_BTY, states = jax.jit(lambda p, t: read(host, p, None, t))(parameters, tokens_BT[:, :prompt])

  def step(states: States, token_B: jax.Array) -> tuple[States, jax.Array]:
    logits_B1Y, after = read(host, parameters, states, token_B[:, None])
    return jax.tree.map(lambda new, old: new.astype(old.dtype), after, states), logits_B1Y[:, 0]

  _, rest_TBY = jax.jit(lambda s, t: jax.lax.scan(step, s, t))(states, tokens_BT[:, prompt:].T)
  return jnp.concatenate([first_BTY, jnp.moveaxis(rest_TBY, 0, 1)], 1)
