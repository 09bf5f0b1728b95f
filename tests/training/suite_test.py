"""How a setting is trained: finite sets, early ends, many runs in one program, and a host for compression."""

import dataclasses
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from asiarch_jax import config, worker
from asiarch_jax.arch import autoencoder, contract, lm
from asiarch_jax.arch.baselines import delta_net
from asiarch_jax.records import Accuracy, Job, to_json
from asiarch_jax.suites import Recipe, Sequences, Setting, settings
from asiarch_jax.training import sharding, suite, train
from tests import fakes

RECIPE = Recipe(
  width=32, heads=2, mlp_width=32, batch=32, epochs=8, learning_rates=(1e-2,), weight_decays=(0.0,), seeds=1,
  epochs_per_look=4,
)  # fmt: skip
RECALL = Sequences('in-context-recall', 8, 32, 384)
MIX = (Sequences('mqar', 16, 16, 50, pairs=2), Sequences('mqar', 16, 24, 20, pairs=3))


def setting_of(kind=RECALL, recipe=RECIPE, tests=None):
  train_kinds = kind if isinstance(kind, tuple) else (kind,)
  held_out = tests or tuple(dataclasses.replace(one, examples=128) for one in train_kinds)
  return Setting('pocket', train_kinds[0].task, train_kinds, held_out, recipe)


class Local(nn.Module):
  """Mixes a token with the one before it, and no further: it can recall nothing."""

  width: int
  heads: int
  dtype: object = jnp.float32

  @nn.compact
  def __call__(self, x_BTD):
    before_BTD = jnp.pad(x_BTD, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    return nn.Dense(self.width, dtype=self.dtype)(jnp.concatenate([x_BTD, before_BTD], -1))


def trained(mixer, setting, seed=0):
  model = settings.model_of(setting.recipe, max(kind.vocabulary for kind in setting.train))
  host = (autoencoder.AutoEncoder if setting.task == 'compression' else lm.LanguageModel)(mixer, model)
  mesh = sharding.mesh(jax.devices(), setting.recipe.runs)
  return suite.run(setting, host, mesh, seed, 0, clock=time.monotonic, report=lambda progress: None)


@pytest.mark.sweep
def test_a_mixer_that_recalls_beats_one_that_cannot():
  able, _ = trained(delta_net.Mixer, setting_of())
  unable, _ = trained(Local, setting_of())
  best, worst = able.runs[0].test[0], unable.runs[0].test[0]
  assert min(best.micro, best.macro) > 0.9 and 0.2 < max(worst.micro, worst.macro) < 0.6, (best, worst)


def test_every_example_is_seen_once_an_epoch_in_an_order_of_the_seed():
  recipe = dataclasses.replace(RECIPE, seeds=2, batch=8, epochs=2)
  setting = setting_of(MIX, recipe)
  data = suite.training_set(setting, jax.random.PRNGKey(0))
  assert setting.batches == 7 + 3 and setting.steps == 20
  for seed in range(2):
    whole = sorted(row.tobytes() for kind in data.kinds for row in np.pad(kind.tokens[seed], _to(24, kind)))
    orders = []
    for epoch in range(2):
      seen = []
      for step in range(10 * epoch, 10 * epoch + 10):
        batch = data.batch(step)
        assert batch.tokens.shape == (2, 8, 24)
        lengths = {int(pairs) for pairs in batch.weights[seed].sum(1)} - {0}
        assert len(lengths) == 1, 'a batch is of one kind'
        seen += [row.tobytes() for row, w in zip(batch.tokens[seed], batch.weights[seed], strict=True) if w.any()]
      assert sorted(seen) == whole
      orders.append(seen)
    assert orders[0] != orders[1]
  first = data.batch(0)
  assert (first.tokens[0] != first.tokens[1]).any()
  jax.tree.map(np.testing.assert_array_equal, first, data.batch(0))


def _to(length, kind):
  return ((0, 0), (0, length - kind.tokens.shape[2]))


def test_a_smaller_last_batch_has_the_loss_of_its_own_rows():
  setting = setting_of(MIX, dataclasses.replace(RECIPE, batch=16))
  data = suite.training_set(setting, jax.random.PRNGKey(0))
  rows = sorted(int((data.batch(step).weights[0].sum(1) > 0).sum()) for step in range(setting.batches))
  assert rows == [2, 4, 16, 16, 16, 16]  # 50 = 3 x 16 + 2 and 20 = 16 + 4


def accuracies(value):
  return (Accuracy('', value, value),)


def test_a_run_is_reported_where_validation_ended_it_and_where_the_test_did():
  recipe = dataclasses.replace(RECIPE, learning_rates=(1e-2, 1e-3))
  values = {
    'validation': iter([(0.5, 0.2), (1.0, 0.3), (0.6, 0.4)]),
    'test': iter([(1.0, 0.1), (0.9, 0.2), (0.7, 0.3)]),
  }
  looks = suite.Looks(recipe, lambda parameters, split: [accuracies(value) for value in next(values[split])])
  looks.look(None, 10)
  looks.look(None, 20)
  assert not looks.ended
  looks.look(None, 30, last=True)
  assert looks.ended
  first, second = (looks.run(r, 0, (1e-2, 0.0), False) for r in range(2))
  assert (first.steps, first.validation, first.test, first.test_stopped) == (20, *map(accuracies, (1.0, 0.9, 1.0)))
  assert (second.steps, second.test, second.test_stopped) == (30, accuracies(0.3), accuracies(0.3))


def test_training_ends_when_all_runs_have():
  easy = dataclasses.replace(RECIPE, stop_at=0.0, epochs_per_look=1)
  result, _ = trained(Local, setting_of(Sequences('memorisation', 16, 16, 64), easy))
  assert [run.steps for run in result.runs] == [2]  # an epoch


def test_each_replica_has_its_own_weight_decay():
  training = config.Training(
    steps=2, batch=2, length=8, seeds=1, learning_rates=(0.1, 0.1, 0.1), steps_per_call=2, warmup=0.0, schedule='cosine'
  )
  host = lm.LanguageModel(Local, config.Model(width=8, layers=1, heads=1, mlp_width=8, vocabulary=16))
  mesh = sharding.mesh(jax.devices(), 3)
  setting = setting_of(Sequences('memorisation', 16, 8, 8), dataclasses.replace(RECIPE, batch=2))
  data = suite.training_set(setting, jax.random.PRNGKey(0))

  trainer = train.Trainer(host, training, mesh, 0, clock=time.monotonic, weight_decays=[0.0, 2.0, 2.0])
  free, *decayed = np.asarray(trainer.fit(data.batch).parameters['embedding'])
  assert np.abs(free).sum() > np.abs(decayed[0]).sum()
  np.testing.assert_array_equal(*decayed)
  with pytest.raises(ValueError, match='1 weight decays for 3 learning rates'):
    train.Trainer(host, training, mesh, 0, clock=time.monotonic, weight_decays=[0.0])


@pytest.mark.slow
def test_the_decoder_sees_the_last_position_alone():
  model = settings.model_of(dataclasses.replace(RECIPE, mlp_width=16), 8)
  tokens = jnp.array([[1, 2, 3, 7], [4, 5, 6, 7]])

  def decoded(mixer):
    host = autoencoder.AutoEncoder(mixer, model)
    return jax.jit(lambda: host.apply({'params': host.initial_parameters(jax.random.key(0))}, tokens))()

  logits = decoded(Nothing)
  assert logits.shape == (2, 4, 8) and logits.dtype == jnp.float32
  np.testing.assert_allclose(logits[0], logits[1], atol=1e-6)  # a mixer that mixes nothing hands nothing over
  assert np.abs(np.diff(logits[0], axis=0)).max() > 1e-3  # but each position is decoded apart
  logits = decoded(Means)
  assert np.abs(logits[0] - logits[1]).max() > 1e-3


class Nothing(nn.Module):
  width: int
  heads: int
  dtype: object = jnp.float32

  @nn.compact
  def __call__(self, x_BTD):
    return nn.Dense(self.width, dtype=self.dtype)(x_BTD)


class Means(Nothing):
  """Hands the mean of all that came on to every position."""

  @nn.compact
  def __call__(self, x_BTD):
    means_BTD = jnp.cumsum(x_BTD, axis=1) / jnp.arange(1, x_BTD.shape[1] + 1)[:, None]
    return nn.Dense(self.width, dtype=self.dtype)(means_BTD)


def test_positions_are_sines_then_cosines():
  waves = np.asarray(autoencoder.positions(6, 8))
  frequencies = 10_000.0 ** -(np.arange(4) / 3)
  expected = [[*np.sin(t * frequencies), *np.cos(t * frequencies)] for t in range(6)]
  np.testing.assert_allclose(waves, expected, atol=1e-6)


def test_a_host_may_have_no_feed_forward():
  model = settings.model_of(dataclasses.replace(RECIPE, mlp_width=0), 16)
  host = lm.LanguageModel(Nothing, model)
  parameters = jax.eval_shape(host.initial_parameters, jax.random.key(0))
  assert set(parameters['layer_0']) == {'mixer', 'mixer_norm'}
  logits = jax.eval_shape(lambda p: host.apply({'params': p}, jnp.zeros((1, 3), int)), parameters)
  assert logits.shape == (1, 3, 16)


@pytest.mark.slow
def test_the_worker_measures_a_setting_and_its_result_travels():
  recipe = dataclasses.replace(RECIPE, epochs=1, seeds=2, learning_rates=(1e-3, 1e-2), weight_decays=(0.0, 0.1))
  setting = setting_of(dataclasses.replace(MIX[0], examples=16), recipe, tests=MIX)
  job = Job('fake', fakes.MIXER, {'seed': 0}, kind='suite', suite=json.loads(json.dumps(to_json(setting))))
  said = []
  result, arrays = worker.run(job, '', '', said.append)
  assert result.failure is None and arrays == {} and result.cost.mixer_parameters > 0
  runs = result.suite.runs
  assert [(run.seed, run.learning_rate, run.weight_decay) for run in runs] == [
    (seed, *pair) for seed in range(2) for pair in recipe.pairs
  ]
  assert [one.test for one in runs[0].test] == ['length=16,pairs=2', 'length=24,pairs=3']
  model = settings.model_of(recipe, 16)
  assert result.suite.parameters == lm.parameter_count(contract.load(fakes.MIXER), model)
  assert {'prepare', 'compile', 'evaluate'} <= {progress.stage for progress in said}


def test_source_outside_the_rules_is_refused_before_it_is_loaded():
  job = Job('bad', f'import os\n{fakes.MIXER}', {'seed': 0}, kind='suite', suite=to_json(setting_of()))
  result, _ = worker.run(job, '', '', lambda progress: None)
  assert result.failure.kind == 'checks' and result.suite is None


@pytest.mark.slow
def test_runs_that_all_diverge_are_a_failure_and_not_a_zero():
  source = fakes.MIXER.replace('return nn', 'return jnp.inf * nn', 1)
  assert source != fakes.MIXER
  setting = setting_of(dataclasses.replace(MIX[0], examples=32), dataclasses.replace(RECIPE, epochs=4))
  result, _ = worker.run(
    Job('bad', source, {'seed': 0}, kind='suite', suite=to_json(setting)), '', '', lambda progress: None
  )
  assert result.failure.kind == 'non_finite' and result.suite is None
