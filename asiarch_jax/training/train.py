"""All replicas of a candidate in one compiled program: `vmap` over local replicas inside `jax.shard_map`.

Replica r has the seed of index first_seed + r // L and the learning rate of index r % L, for L learning rates. A call
of the program is `training.steps_per_call` steps in one `lax.scan`; per-device code with explicit collectives, so that
proposals and Pallas calls never meet an automatic partitioner. Gradients are averaged over the mesh axes `data` and
`fsdp`: replicas never meet.

A replica's numbers are a function of (seed, its seed index, its learning rate, its batches): the same one runs beside
any others. One `Trainer` compiles once and fits several times.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from asiarch_jax import config
from asiarch_jax.batch import Batch
from asiarch_jax.training import monitor, optim, sharding

Score = Callable[[jax.Array, Batch], tuple[jax.Array, jax.Array]]  # (logits_BTY, batch) -> (sum_B, count_B)
Batches = Callable[[int], Batch]  # step -> numpy arrays [S, B, T]
Parts = Callable[[int, slice, slice], Batch]  # (step, seeds, rows) -> that part of them
OnProgress = Callable[[int, np.ndarray, float], None]  # (step, losses_R, seconds a step)
Watch = Callable[[np.ndarray, Sequence[float]], monitor.Stop | None]  # (losses_LR, seconds_L) -> reason to stop

# How the replicas of one device are run. On a CPU one after the other, since the arrays of one fit its caches (measured
# 1.8 times faster than vmap at the default size); elsewhere side by side.
LAYOUTS = {'cpu': 'map'}
QUICK = {'xla_backend_optimization_level': 0}  # for programs that run once


class State(NamedTuple):
  """What a step carries; every leaf has the replica as its leading axis."""

  parameters: Any
  optimiser: Any
  step: jax.Array


class Peak(NamedTuple):
  """What replicas differ in beside their seed."""

  rate: Any
  weight_decay: Any


class Snapshot(NamedTuple):
  """A run at a step boundary: enough to go on as if it had never stopped. `losses` [logs of the whole run, R]."""

  state: State
  losses: Any
  logs: Any


@dataclasses.dataclass(frozen=True)
class Fit:
  """What training gave. `losses` [logs, R] are cross entropies in nats a token, each the mean of `log_every` steps.

  `parameters` have the replica as leading axis. `stopped` is None when all steps were run; otherwise the parameters may
  be one call younger than the last loss. `seconds_per_step` is the median over calls without the first, for all
  replicas together; nan when there was one call only. `peak_bytes` is of one device.
  """

  parameters: Any
  losses: np.ndarray
  stopped: monitor.Stop | None
  steps: int
  seconds_per_step: float
  compile_seconds: float
  peak_bytes: int

  @property
  def diverged(self) -> np.ndarray:
    """[R]: which replicas had a loss that is not finite."""
    return monitor.diverged(self.losses)


def cross_entropy(logits_BTY: jax.Array, targets_BT: jax.Array) -> jax.Array:
  """Returns the cross entropy of each position in nats, float32 [B, T]."""
  logits_BTY = logits_BTY.astype(jnp.float32)
  picked_BT = jnp.take_along_axis(logits_BTY, targets_BT[..., None], axis=-1)[..., 0]
  return jax.nn.logsumexp(logits_BTY, axis=-1) - picked_BT


class Trainer:
  """One host, one mesh, one compiled step, any number of fits.

  `host` is duck-typed: `initial_parameters(key)` and Linen's `apply`; `by_block` where it has one (`lm.LanguageModel`).
  `seed` and a replica's seed index make its key. `clock` gives seconds. `weight_decays` has one for each learning rate;
  None takes the configured one for all. Nothing is compiled before the first fit.
  """

  def __init__(
    self,
    host: Any,
    training: config.Training,
    mesh: Mesh,
    seed: int,
    *,
    clock: Callable[[], float],
    layout: str | None = None,
    weight_decays: Sequence[float] | None = None,
  ) -> None:
    self.host, self.training, self.mesh, self.seed, self.clock = host, training, mesh, seed, clock
    # Blocks that a host makes whole itself, when it runs them.
    self.running: Any = host
    self.later: tuple[str, ...] = ()
    if training.sharded and hasattr(host, 'by_block'):
      self.running, self.later = host.by_block(self._whole_block)
    self.layout = layout or LAYOUTS.get(mesh.devices.flat[0].platform, 'vmap')
    self.rates = np.asarray(training.learning_rates, np.float32)
    self.decays = np.full_like(self.rates, training.weight_decay)
    if weight_decays is not None:
      self.decays = np.asarray(weight_decays, np.float32)
    if len(self.decays) != len(self.rates):
      raise ValueError(f'{len(self.decays)} weight decays for {len(self.rates)} learning rates; give one for each')
    self.replicas = training.seeds * len(self.rates)
    self.rules = sharding.Rules(tuple(map(config.sharding_rule, training.sharded)))
    sharing = sharding.batch_devices(mesh)
    rows = training.batch // sharing
    if rows % training.microbatches:
      raise sharding.UnfitError(
        f'training.microbatches = {training.microbatches} does not divide the {rows} rows of a device '
        f'(training.batch = {training.batch} over {sharing} devices); lower it to a divisor of {rows}'
      )
    self.compile_seconds = 0.0
    self._evaluators: dict[Any, Any] = {}

  def fit(
    self,
    batches: Batches | None = None,
    *,
    parts: Parts | None = None,
    steps: int | None = None,
    learning_rates: Sequence[float] | None = None,
    watch: Watch | None = None,
    on_progress: OnProgress | None = None,
    save: Callable[[Snapshot], None] | None = None,
    restore: Callable[[Snapshot], Snapshot | None] | None = None,
  ) -> Fit:
    """Trains fresh replicas for `steps` (default: the configured ones) on `batches(step)`, numpy [S, B, T].

    Of several processes each may make what its own devices take and no more: that is asked of `parts`, instead.

    Losses come back one call late, so the device never waits for the host, and never later: at most two calls are in
    flight (on forced CPU devices an unbounded queue of collectives deadlocks). `save` is handed a snapshot every
    `training.checkpoint_every` steps; `restore` is given a snapshot of the right shapes and returns a saved one to go
    on from, or None.

    Raises:
      ValueError: `steps` is no multiple of `steps_per_call`, or the number of learning rates differs from the
        configured one.
    """
    training, per_call = self.training, self.training.steps_per_call
    steps = steps or training.steps
    if steps % per_call:
      raise ValueError(f'training.steps_per_call = {per_call} does not divide {steps} steps')
    rates = self.rates if learning_rates is None else np.asarray(learning_rates, np.float32)
    if len(rates) != len(self.rates):
      raise ValueError(f'{len(rates)} learning rates for a program of {len(self.rates)}; build another Trainer')
    peaks = Peak(np.tile(rates, training.seeds), np.tile(self.decays, training.seeds))
    peaks_R = sharding.place(peaks, self.mesh, sharding.REPLICAS)
    logs = steps // per_call

    state = self._initial(self._keys())
    losses_LR, done = np.full((logs, self.replicas), np.nan, np.float32), 0
    if restore is not None:
      saved = restore(Snapshot(state, losses_LR, np.asarray(0)))
      if saved is not None:
        state, done = saved.state, int(saved.logs)
        losses_LR = np.array(saved.losses)
    run, total = self._step, jnp.float32(steps)

    seconds: list[float] = []
    stopped, pending, before = None, None, self.clock()

    def fetch(log: int, losses_KR: jax.Array) -> monitor.Stop | None:
      nonlocal before
      losses_LR[log] = sharding.host(losses_KR).mean(axis=0)
      now = self.clock()
      seconds.append(sharding.agreed((now - before) / per_call))
      before = now
      if on_progress is not None:
        on_progress((log + 1) * per_call, losses_LR[log], seconds[-1])
      return watch(losses_LR[: log + 1], seconds) if watch is not None else None

    reached = done
    for log in range(done, logs):
      state, losses_KR = run(state, self._call_batches(batches, parts, log), peaks_R, total)
      if pending is not None:
        stopped, reached = fetch(*pending), log
        pending = None
        if stopped is not None:
          break
      pending = (log, losses_KR)
      due = training.checkpoint_every and (log + 1) * per_call % training.checkpoint_every < per_call
      if save is not None and due and log + 1 < logs:
        stopped, reached = fetch(*pending), log + 1
        pending = None
        if stopped is not None:
          break
        save(Snapshot(state, losses_LR, np.asarray(log + 1)))
    if pending is not None:
      stopped, reached = fetch(*pending), logs
    return Fit(
      parameters=state.parameters,
      losses=losses_LR[:reached],
      stopped=stopped,
      steps=reached * per_call,
      seconds_per_step=float(np.median(seconds[1:])) if len(seconds) > 1 else float('nan'),
      compile_seconds=self.compile_seconds,
      peak_bytes=self._peak_bytes(),
    )

  def evaluate(self, parameters: Any, batches: Iterable[Batch], score: Score) -> tuple[np.ndarray, np.ndarray]:
    """Returns per-example sums and counts, each [R, N], of `score` over held-out `batches` [B, T]."""
    return self.measure(parameters, batches, {'score': score})['score']

  def measure(
    self, parameters: Any, batches: Iterable[Batch], scores: Mapping[str, Score]
  ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns {name: (sums [R, N], counts [R, N])} of all `scores` from one forward pass a batch.

    Compiled once for the same scores and batch shape. The last batch may be smaller (it compiles again).
    """
    parts = []
    for batch in batches:
      parts.append(self._evaluator(parameters, batch, scores)(parameters, self._placed_rows(batch)))
      if len(parts) > 1:
        jax.block_until_ready(parts[-2])
    return {
      name: (
        np.concatenate([sharding.host(part[name][0]) for part in parts], axis=1),
        np.concatenate([sharding.host(part[name][1]) for part in parts], axis=1),
      )
      for name in scores
    }

  # One replica.

  def _whole_block(self, name: str, parts: Any) -> Any:
    return sharding.gathered_block(parts, self.rules, name, self.one.parameters[name])

  def _applied(self, parameters: Any, batch: Batch) -> tuple[jax.Array, Any]:
    """Returns (logits, what was sown) of one replica, whose parameters may lie in parts."""
    whole = sharding.gathered(parameters, self.rules, self.one.parameters, self.later)
    return self.running.apply({'params': whole}, batch.tokens, mutable=['losses', 'diagnostics'])

  def _loss(self, parameters: Any, batch: Batch, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (objective, cross entropy) of one replica on one device's rows; `weight` is the mean over devices of the
    sum of weights, so the mean over devices of what comes back is the weighted mean over all rows."""
    logits_BTY, sown = self._applied(parameters, batch)
    entropy = jnp.sum(cross_entropy(logits_BTY, batch.targets) * batch.weights) / weight
    auxiliary = sum((jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(sown.get('losses', {}))), 0.0)
    return entropy + auxiliary, entropy

  def _gradient(self, parameters: Any, batch: Batch, weight: jax.Array) -> tuple[Any, jax.Array]:
    """Returns (gradient, cross entropy) of one replica on one device's rows, a microbatch at a time."""
    parts = self.training.microbatches
    of_loss = jax.value_and_grad(self._loss, has_aux=True)
    if parts == 1:
      (_, entropy), gradient = of_loss(parameters, batch, weight)
      return gradient, entropy

    def add(sums: Any, rows: Batch) -> tuple[Any, None]:
      # The loss of a part is over the part's share of the weight: auxiliary losses are means over rows, too.
      (_, entropy), gradient = of_loss(parameters, rows, weight / parts)
      return jax.tree.map(jnp.add, sums, (gradient, entropy)), None

    parted = jax.tree.map(lambda leaf: leaf.reshape(parts, -1, *leaf.shape[1:]), batch)
    zeros = (jax.tree.map(jnp.zeros_like, parameters), jnp.float32(0))
    sums, _ = jax.lax.scan(add, zeros, parted)
    return jax.tree.map(lambda leaf: leaf / parts, sums)

  def _update(self, state: State, batch: Batch, peak: Peak, steps: jax.Array) -> tuple[State, jax.Array]:
    """Returns one replica after one step, and its cross entropy."""
    weight = jax.lax.pmean(jnp.sum(batch.weights), sharding.BATCH)
    whole = self.one.parameters
    gradient, entropy = self._gradient(state.parameters, batch, jnp.maximum(weight, 1e-9))
    gradient, entropy = sharding.averaged(gradient, self.rules, whole), jax.lax.pmean(entropy, sharding.BATCH)
    gradient = optim.clipped(gradient, sharding.norm(gradient, self.rules, whole), self.training)
    chain = optim.adamw(self.training, peak.weight_decay)
    update, optimiser = chain.update(gradient, state.optimiser, state.parameters)
    now = optim.learning_rate(peak.rate, state.step, steps, self.training)
    parameters = jax.tree.map(lambda old, change: old - now * change, state.parameters, update)
    return State(parameters, optimiser, state.step + 1), entropy

  # All replicas.

  def _call(self, state: State, batches: Batch, peaks_R: Peak, steps: jax.Array) -> tuple[State, jax.Array]:
    """Returns all local replicas after a call, and their cross entropies [K, R]. Batches are [K, R, B, T]."""

    def one(state: State, batches_K: Batch, peak: Peak) -> tuple[State, jax.Array]:
      return jax.lax.scan(lambda now, batch: self._update(now, batch, peak, steps), state, batches_K)

    if self.layout == 'vmap':
      return jax.vmap(one, in_axes=(0, 1, 0), out_axes=(0, 1))(state, batches, peaks_R)
    by_replica = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), batches)
    state, losses_RK = jax.lax.map(lambda replica: one(*replica), (state, by_replica, peaks_R))
    return state, losses_RK.T

  def _new(self, key: jax.Array) -> State:
    parameters = self.host.initial_parameters(key)
    return State(parameters, optim.adamw(self.training).init(parameters), jnp.int32(0))

  def _fresh(self, keys_R: jax.Array) -> State:
    return jax.vmap(lambda key: sharding.cut(self._new(key), self.rules))(keys_R)

  @functools.cached_property
  def one(self) -> State:
    """Returns the shapes of one replica's whole state.

    Raises:
      sharding.UnfitError: a rule of `training.sharded` does not fit them.
    """
    one = jax.eval_shape(self._new, jax.random.key(0))
    self.rules.check(one.parameters, self.mesh.shape[sharding.FSDP])
    return one

  @property
  def state_bytes(self) -> int:
    """What a device holds of one replica's parameters and optimiser state."""
    parts, leaves = self.mesh.shape[sharding.FSDP], jax.tree_util.tree_leaves_with_path(self.one)
    return sum(
      leaf.dtype.itemsize * math.prod(leaf.shape) // (1 if self.rules.axis(path, leaf) is None else parts)
      for path, leaf in leaves
    )

  @property
  def compiled_step(self) -> Any:
    """The program of a call, compiled for the mesh's devices."""
    return self._step

  @functools.cached_property
  def _states(self) -> State:
    """How the state of all replicas lies on the mesh."""
    return self.rules.specs(self.one)

  def _keys(self) -> jax.Array:
    root, rates, first = jax.random.PRNGKey(self.seed), len(self.rates), self.training.first_seed
    keys = np.stack([np.asarray(jax.random.fold_in(root, first + r // rates)) for r in range(self.replicas)])
    return sharding.place(keys, self.mesh, sharding.REPLICAS)

  def _call_batches(self, batches: Batches | None, parts: Parts | None, log: int) -> Batch:
    training, rates = self.training, len(self.rates)
    steps = range(log * training.steps_per_call, (log + 1) * training.steps_per_call)
    replicas, rows = sharding.own_part(self.mesh, self.replicas, training.batch)
    seeds = slice(replicas.start // rates, -(-replicas.stop // rates))
    origin = (0, seeds.start * rates, rows.start, 0)
    if parts is not None:
      made = [parts(step, seeds, rows) for step in steps]
    else:
      assert batches is not None, 'a fit needs batches, or parts of them'
      made, origin = [batches(step) for step in steps], (0, 0, 0, 0)
    stack = Batch(*(np.stack(leaves) for leaves in zip(*made, strict=True)))
    if rates > 1:
      stack = jax.tree.map(lambda leaf: np.repeat(leaf, rates, axis=1), stack)
    whole = (len(steps), self.replicas, training.batch, training.length)
    return sharding.place_part(stack, self.mesh, sharding.STEPS, whole, origin)

  # Compiled programs.

  def _compiled(self, function: Callable[..., Any], arguments: Any, options: Any = None, **jit: Any) -> Any:
    before = self.clock()
    program = jax.jit(function, **jit).lower(*arguments).compile(compiler_options=options)
    self.compile_seconds += self.clock() - before
    return program

  def _sharded(self, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    # check_vma would refuse proposals whose scans start from plain zeros.
    return jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

  @functools.cached_property
  def _initial(self) -> Any:
    keys = jax.ShapeDtypeStruct((self.replicas, 2), jnp.uint32, sharding=self._at(sharding.REPLICAS))
    fresh = self._sharded(self._fresh, sharding.REPLICAS, self._states)
    return self._compiled(fresh, (keys,), QUICK)

  @functools.cached_property
  def _step(self) -> Any:
    training = self.training
    size = (training.steps_per_call, self.replicas, training.batch, training.length)
    batch = Batch(*(self._shaped(size, kind, sharding.STEPS) for kind in (jnp.int32, jnp.int32, jnp.float32)))
    state = jax.tree.map(
      lambda leaf, spec: self._shaped((self.replicas, *leaf.shape), leaf.dtype, spec), self.one, self._states
    )
    peaks = Peak(*2 * [self._shaped((self.replicas,), jnp.float32, sharding.REPLICAS)])
    total = jax.ShapeDtypeStruct((), jnp.float32)
    call = self._sharded(
      self._call,
      (self._states, sharding.STEPS, sharding.REPLICAS, P()),
      (self._states, sharding.LOSSES),
    )
    return self._compiled(call, (state, batch, peaks, total), donate_argnums=0)

  def _evaluator(self, parameters: Any, batch: Batch, scores: Mapping[str, Score]) -> Any:
    rows = self._rows(batch)
    key = (tuple(scores.items()), np.shape(batch.tokens))
    if key not in self._evaluators:

      def one(parameters: Any, batch: Batch) -> dict[str, tuple[jax.Array, jax.Array]]:
        logits_BTY = self._applied(parameters, batch)[0]
        return {name: score(logits_BTY, batch) for name, score in scores.items()}

      def every(parameters: Any, batch: Batch) -> dict[str, tuple[jax.Array, jax.Array]]:
        if self.layout == 'vmap':
          return jax.vmap(one, in_axes=(0, None))(parameters, batch)
        return jax.lax.map(lambda replica: one(replica, batch), parameters)

      specs = self._states.parameters
      function = self._sharded(every, (specs, rows), P(sharding.REPLICA, *rows))
      self._evaluators[key] = self._compiled(function, (parameters, self._placed_rows(batch)))
    return self._evaluators[key]

  def _rows(self, batch: Batch) -> P:
    """Held-out rows are shared out where they divide, else every device takes all."""
    return sharding.ROWS if np.shape(batch.tokens)[0] % sharding.batch_devices(self.mesh) == 0 else P()

  def _placed_rows(self, batch: Batch) -> Batch:
    return sharding.place(batch, self.mesh, self._rows(batch))

  def _at(self, spec: P) -> NamedSharding:
    return NamedSharding(self.mesh, spec)

  def _shaped(self, size: tuple[int, ...], dtype: Any, spec: P) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(size, dtype, sharding=self._at(spec))

  def _peak_bytes(self) -> int:
    """Returns what one device held at most: measured where the device says so, else what the compiler laid out."""
    measured = (self.mesh.local_devices[0].memory_stats() or {}).get('peak_bytes_in_use')
    return int(measured or planned_bytes(self._step.memory_analysis()))


def planned_bytes(plan: Any) -> int:
  """Returns what a program holds at most of a device's memory, as its compiler laid it out."""
  return int(
    plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes - plan.alias_size_in_bytes
  )
