"""A model that reads the future where it is trained alone is found there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asiarch_jax.batch import Batch
from asiarch_jax.training import causality
from tests.training import across_devices, tiny


class Leaking(tiny.Host):
  """Sees the next token in batches of more than three rows, which no check before training has."""

  def __call__(self, tokens_BT):
    logits_BTY = super().__call__(tokens_BT)
    if tokens_BT.shape[0] > 3:
      logits_BTY += 4.0 * jax.nn.one_hot(jnp.roll(tokens_BT, -1, 1), tiny.VOCABULARY)
    return logits_BTY


@pytest.mark.parametrize('host, leaks', [(tiny.Host(), False), (Leaking(), True)])
def test_a_leak_that_begins_with_training_is_found(host, leaks):
  trainer = tiny.trainer(host)
  fitted = trainer.fit(tiny.copy_batch)
  rows = jax.tree.map(lambda leaf: leaf.reshape(-1, 8), tiny.copy_batch(77))
  scores = {'loss': across_devices.score}
  found = causality.leak(lambda batch: trainer.measure(fitted.parameters, [batch], scores)['loss'][0], rows)
  assert (found is not None) == leaks
  assert not leaks or 'from position 4 on' in found


def test_replicas_without_a_loss_tell_nothing_and_rounding_is_no_leak():
  batch = Batch(*(np.zeros((2, 8), kind) for kind in (np.int32, np.int32, np.float32)))
  sums = iter(([[np.nan, 1.0], [700.0, 3.0]], [[5.0, np.inf], [700.01, 3.0]]))
  assert causality.leak(lambda _: np.array(next(sums)), batch) is None
  sums = iter(([[np.nan, 1.0], [700.0, 3.0]], [[5.0, np.inf], [700.2, 3.0]]))
  assert 'up to 0.2 nats' in causality.leak(lambda _: np.array(next(sums)), batch)
