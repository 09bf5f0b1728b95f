import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asiarch_jax.training import monitor, train
from tests.training import across_devices, tiny

ROOT = pathlib.Path(__file__).parents[2]


def fit(*, replicas=range(4), trainer=None, **options):
  trainer = trainer or tiny.trainer(seeds=len(replicas))
  return trainer.fit(lambda step: tiny.copy_batch(step, replicas), **options)


def test_the_loss_of_a_copy_problem_falls():
  fitted = fit(trainer=tiny.trainer(steps=90))
  assert fitted.losses[0].min() > 2.0 and fitted.losses[-1].max() < 0.5
  assert fitted.stopped is None and fitted.steps == 90 and fitted.losses.shape == (30, 4)


@pytest.mark.parametrize('layout', ['map', 'vmap'])
def test_replicas_side_by_side_equal_replicas_in_turn(layout):
  settings = tiny.trainer()
  other = train.Trainer(tiny.Host(), settings.training, settings.mesh, 0, clock=settings.clock, layout=layout)
  np.testing.assert_allclose(fit(trainer=other).losses, fit(trainer=settings).losses, rtol=1e-5)


def test_a_replica_alone_is_the_one_among_four():
  among, alone = fit(), fit(replicas=range(1))
  np.testing.assert_array_equal(alone.losses[:, 0], among.losses[:, 0])
  for one, four in zip(jax.tree.leaves(alone.parameters), jax.tree.leaves(among.parameters), strict=True):
    np.testing.assert_array_equal(one[0], four[0])


def test_replica_r_has_seed_r_over_rates_and_rate_r_modulo_rates():
  rates = (1e-3, 1e-2, 3e-2)
  trainer = tiny.trainer(seeds=2, learning_rates=rates)
  fitted = fit(trainer=trainer, replicas=range(2))
  assert fitted.losses.shape == (4, 6)
  for index, rate in enumerate(rates):
    single = fit(trainer=tiny.trainer(seeds=2, learning_rates=(rate,)), replicas=range(2))
    np.testing.assert_array_equal(fitted.losses[:, index::3], single.losses)


def test_seeds_differ_and_the_seed_of_the_run_changes_all():
  fitted = fit()
  starts = np.asarray(fitted.parameters['head']['kernel'])
  assert len(np.unique(starts[:, 0, 0])) == 4
  assert not np.allclose(fit(trainer=tiny.trainer(seed=1)).losses, fitted.losses)


def test_the_same_program_fits_twice_and_compiles_once():
  trainer = tiny.trainer()
  first = fit(trainer=trainer)
  compiled = trainer.compile_seconds
  again, other = fit(trainer=trainer), fit(trainer=trainer, steps=6, learning_rates=[3e-2])
  assert trainer.compile_seconds == compiled > 0
  np.testing.assert_array_equal(again.losses, first.losses)
  assert other.losses.shape == (2, 4) and not np.allclose(other.losses, first.losses[:2])


def test_a_shorter_run_has_its_own_schedule():
  """Six steps of a program compiled for twelve equal six steps of one compiled for six."""
  np.testing.assert_array_equal(fit(steps=6).losses, fit(trainer=tiny.trainer(steps=6)).losses)


def test_steps_in_one_call_do_not_change_the_result():
  one, three = fit(trainer=tiny.trainer(steps_per_call=1)), fit()
  np.testing.assert_allclose(one.losses.reshape(4, 3, 4).mean(1), three.losses, rtol=1e-5)


def test_sown_losses_are_trained_on_and_not_logged():
  plain, taxed = fit(), fit(trainer=tiny.trainer(tiny.Host(auxiliary=5.0)))
  np.testing.assert_allclose(taxed.losses, plain.losses, rtol=1e-6)
  trainer = tiny.trainer(tiny.Host(auxiliary=5.0))
  state = jax.tree.map(lambda leaf: leaf[0], trainer._initial(trainer._keys()))
  batch = jax.tree.map(lambda leaf: leaf[0], tiny.copy_batch(0))
  objective, entropy = trainer._loss(state.parameters, batch, batch.weights.sum())
  assert float(objective - entropy) == pytest.approx(5.0, rel=1e-5)


def test_positions_without_weight_teach_nothing():
  def spoilt(step):
    batch = tiny.copy_batch(step)
    batch.targets[..., 0] = 0  # position 0 has no weight
    return batch

  np.testing.assert_array_equal(tiny.trainer().fit(spoilt).losses, fit().losses)


def test_a_batch_without_any_weight_does_no_harm():
  def silent(step):
    batch = tiny.copy_batch(step)
    return batch._replace(weights=np.zeros_like(batch.weights)) if step == 4 else batch

  assert np.isfinite(tiny.trainer().fit(silent).losses).all()


def explode(step):
  """Replica 2 meets a loss that is not finite at step 5."""
  batch = tiny.copy_batch(step)
  if step == 5:
    batch.weights[2] = np.inf
  return batch


def test_a_diverging_replica_is_flagged_and_harms_no_other():
  fitted, healthy = tiny.trainer().fit(explode), fit()
  assert fitted.diverged.tolist() == [False, False, True, False]
  others = [0, 1, 3]
  np.testing.assert_array_equal(fitted.losses[:, others], healthy.losses[:, others])
  for bad, good in zip(jax.tree.leaves(fitted.parameters), jax.tree.leaves(healthy.parameters), strict=True):
    np.testing.assert_array_equal(np.asarray(bad)[others], np.asarray(good)[others])


class Ticks:
  """A clock that moves by `seconds` each time it is read."""

  def __init__(self, seconds):
    self.now, self.seconds = 0.0, seconds

  def __call__(self):
    self.now += self.seconds
    return self.now


@pytest.mark.parametrize(
  'kind, changes, baseline, limit',
  [
    ('non_finite', {'learning_rates': (1e30,)}, (), None),
    ('too_slow', {}, (), 0.1),
    ('suspiciously_low', {}, (100.0,) * 4, None),
    ('hopeless', {}, (0.9,) * 4, None),
  ],
)
def test_each_end_has_its_reason(kind, changes, baseline, limit):
  trainer = tiny.trainer(clock=Ticks(1.0), steps=15, **changes)
  watch = monitor.Watch(tiny.config.Monitor(), baseline, limit, trainer.training)
  fitted = fit(trainer=trainer, watch=watch)
  assert fitted.stopped is not None and fitted.stopped.kind == kind
  assert fitted.steps < 15 and len(fitted.losses) == fitted.steps // 3


def test_progress_is_reported_once_a_call_in_order():
  seen = []
  fitted = fit(on_progress=lambda step, losses_R, seconds: seen.append((step, losses_R.copy(), seconds)))
  assert [step for step, _, _ in seen] == [3, 6, 9, 12]
  np.testing.assert_array_equal(np.stack([losses for _, losses, _ in seen]), fitted.losses)
  assert all(seconds > 0 for _, _, seconds in seen)


def test_at_most_two_calls_are_in_flight():
  """Batches of call n are asked for only after the losses of call n - 2 came back."""
  asked, returned = [], []

  def batches(step):
    asked.append((step, len(returned)))
    return tiny.copy_batch(step)

  fit(trainer=tiny.trainer(steps_per_call=1))
  tiny.trainer(steps_per_call=1).fit(batches, on_progress=lambda *_: returned.append(1))
  assert all(back >= step - 2 for step, back in asked)
  assert any(back < step for step, back in asked), 'the host never waits for the call it has just sent'


def test_wrong_steps_and_rates_are_refused_with_both_numbers():
  with pytest.raises(ValueError, match='steps_per_call = 3 does not divide 10'):
    fit(steps=10)
  with pytest.raises(ValueError, match='2 learning rates for a program of 1'):
    fit(learning_rates=[1e-3, 1e-2])


def test_bfloat16_trains_and_keeps_float32_parameters():
  fitted = fit(trainer=tiny.trainer(tiny.Host(dtype=jnp.bfloat16), steps=90))
  assert {leaf.dtype for leaf in jax.tree.leaves(fitted.parameters)} == {np.dtype('float32')}
  assert fitted.losses[-1].max() < 1.0


def test_evaluation_is_per_example_and_shared_by_all_scores():
  trainer = tiny.trainer()
  fitted = fit(trainer=trainer)
  rows = jax.tree.map(lambda leaf: leaf.reshape(-1, 8), tiny.copy_batch(77))
  batches = [jax.tree.map(lambda leaf, at=at: leaf[at : at + 5], rows) for at in (0, 5, 10, 15)]  # the last has one row

  def right(logits_BTY, batch):
    return ((logits_BTY.argmax(-1) == batch.targets) * batch.weights).sum(-1), batch.weights.sum(-1)

  measured = trainer.measure(fitted.parameters, batches, {'loss': across_devices.score, 'right': right})
  assert measured['loss'][0].shape == measured['right'][1].shape == (4, 16)
  alone = trainer.evaluate(fitted.parameters, [rows], right)
  np.testing.assert_array_equal(measured['right'][0], alone[0])
  for r in range(4):
    parameters = jax.tree.map(lambda leaf, r=r: leaf[r], fitted.parameters)
    expected, _ = across_devices.score(tiny.Host().apply({'params': parameters}, rows.tokens), rows)
    np.testing.assert_allclose(measured['loss'][0][r], expected, rtol=1e-4)
