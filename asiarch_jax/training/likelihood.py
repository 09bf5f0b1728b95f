"""What a trained model says to given text: log-likelihoods of continuations, and greedy continuations, in buckets.

Requests of all lengths go through few programs: a request is put into the shortest bucket that holds it, padded on the
right (a mixer is causal, so what follows a token does not change it), and every bucket has a fixed number of rows, so
that it is compiled once. Rows are shared out over the devices by `jax.shard_map`, parameters are on each.

A mixer has no step of its own to decode with, so each new token of `continuations` runs its whole prefix again.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from asiarch_jax.training import sharding, train

ROWS = P(sharding.DATA)  # [B, T]
SMALLEST = 32  # tokens of the shortest bucket
OnCall = Callable[[int, int], None]  # (requests answered, requests in all), after each call of a program
Stop = Callable[[int, Sequence[int]], bool]  # (index of the prompt, ids generated so far) -> whether it is complete


@dataclasses.dataclass(frozen=True)
class Question:
  """What is the probability of the last `scored` ids, given those before them? At least one comes before."""

  ids: Sequence[int]
  scored: int


@dataclasses.dataclass(frozen=True)
class Prompt:
  """How does it go on, for at most `most` tokens?"""

  ids: Sequence[int]
  most: int


def buckets(max_length: int, smallest: int = SMALLEST) -> tuple[int, ...]:
  """Returns the lengths that programs are compiled for: `smallest`, its doubles, then `max_length`.

  >>> buckets(128), buckets(100), buckets(8)
  ((32, 64, 128), (32, 64, 100), (8,))
  """
  doubles = [smallest << n for n in range(max_length.bit_length()) if smallest << n < max_length]
  return (*doubles, max_length)


def windows(question: Question, max_length: int) -> list[Question]:
  """Returns the questions of at most `max_length` inputs whose answers add up to that of `question`.

  As EleutherAI's harness has it: where the scored ids fit, one window, which loses its left end. More of them than
  `max_length` are scored in consecutive windows, each id once; every window but the first sees as much of what came
  before as fits (`lm_eval.utils.get_rolling_token_windows`). None where nothing is scored.

  >>> [(list(w.ids), w.scored) for w in windows(Question(range(8), 7), 3)]
  [([0, 1, 2, 3], 3), ([3, 4, 5, 6], 3), ([4, 5, 6, 7], 1)]

  Raises:
    ValueError: nothing comes before the scored ids, or their number is negative.
  """
  ids, scored = question.ids, question.scored
  first = len(ids) - scored
  if first < 1 or scored < 0:
    raise ValueError(f'{scored} of {len(ids)} ids are to be scored; at least one has to come before them')
  if scored == 0:
    return []
  if scored <= max_length:
    return [Question(ids[-(max_length + 1) :], scored)]
  ends = [*range(first + max_length, len(ids), max_length), len(ids)]
  return [
    Question(ids[end - max_length - 1 : end], end - start) for start, end in zip([first, *ends[:-1]], ends, strict=True)
  ]


class Scorer:
  """One model with its parameters, and the programs that it answers with. Nothing is compiled before it is asked.

  Args:
    host: duck-typed, `model.vocabulary` and Linen's `apply`: tokens [B, T] to logits [B, T, vocabulary] in float32.
    parameters: of one replica.
    max_length: inputs at most; a longer text loses its left end.
    tokens_per_call: B times T of a call at most, where that leaves a row for each device.
    vocabulary: ids that may be generated: [0, vocabulary). Default: all that the model knows.
    devices: that share the rows; default: the local ones.
    smallest: tokens of the shortest bucket.
  """

  def __init__(
    self,
    host: Any,
    parameters: Any,
    *,
    max_length: int,
    tokens_per_call: int,
    vocabulary: int | None = None,
    devices: Sequence[Any] | None = None,
    smallest: int = SMALLEST,
  ) -> None:
    devices = list(jax.local_devices() if devices is None else devices)
    self.host, self.max_length, self.vocabulary = host, max_length, vocabulary
    self.buckets = buckets(max_length, smallest)
    self.mesh = Mesh(np.asarray(devices, dtype=object), (sharding.DATA,), axis_types=(AxisType.Auto,))
    self.parameters = sharding.place(parameters, self.mesh, P())
    self._tokens_per_call = tokens_per_call
    self._programs: dict[tuple[str, int], Any] = {}

  @property
  def compiled(self) -> tuple[tuple[str, int], ...]:
    """(what for, bucket) of every program so far."""
    return tuple(self._programs)

  def rows(self, bucket: int) -> int:
    """Returns the rows of a call: a multiple of the devices."""
    devices = self.mesh.devices.size
    return max(1, self._tokens_per_call // (bucket * devices)) * devices

  def loglikelihoods(
    self, questions: Sequence[Question], on_call: OnCall | None = None
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns the log-probabilities in nats, float64 [N], and whether each is what greedy decoding gives, bool [N].

    Of a question that scores nothing they are 0 and True.

    Raises:
      ValueError: a question has no context, an id is outside the vocabulary, or an answer is not finite.
    """
    asked: dict[int, list[tuple[int, Question]]] = collections.defaultdict(list)
    for index, question in enumerate(questions):
      for window in windows(question, self.max_length):
        asked[self._bucket(len(window.ids) - 1)].append((index, window))
    sums_N, greedy_N = np.zeros(len(questions)), np.ones(len(questions), bool)
    done, total = 0, sum(map(len, asked.values()))
    for bucket, wanted in sorted(asked.items()):
      rows = self.rows(bucket)
      for start in range(0, len(wanted), rows):
        part = wanted[start : start + rows]
        tokens_BT, targets_BT = np.zeros((rows, bucket), np.int32), np.zeros((rows, bucket), np.int32)
        for row, (_, window) in enumerate(part):
          ids = np.asarray(window.ids, np.int32)
          tokens_BT[row, : len(ids) - 1], targets_BT[row, : len(ids) - 1] = ids[:-1], ids[1:]
        nats_BT, hits_BT = map(np.asarray, self._call('score', bucket, tokens_BT, targets_BT))
        for row, (index, window) in enumerate(part):
          scored = slice(len(window.ids) - 1 - window.scored, len(window.ids) - 1)
          sums_N[index] -= nats_BT[row, scored].sum(dtype=np.float64)
          greedy_N[index] &= hits_BT[row, scored].all()
        done += len(part)
        if on_call is not None:
          on_call(done, total)
    bad = np.flatnonzero(~np.isfinite(sums_N))
    if len(bad):
      raise ValueError(
        f'the log-likelihood of request {bad[0]} is {sums_N[bad[0]]} ({len(bad)} of {len(sums_N)} are not finite): '
        'the model breaks on this text; evaluate with a smaller --max_length, or look at the mixer'
      )
    return sums_N, greedy_N

  def continuations(
    self, prompts: Sequence[Prompt], *, end: int, stop: Stop | None = None, on_call: OnCall | None = None
  ) -> list[list[int]]:
    """Returns what greedy decoding adds to each prompt, without `end`: until that, `stop`, or as many as it asks for.

    As the harness has it, a prompt loses its left end so that all that may be added fits into `max_length`; one that
    asks for more than that is seen through a window that slides.

    Raises:
      ValueError: a prompt is empty, or an id is outside the vocabulary.
    """
    added: list[list[int]] = [[] for _ in prompts]
    waiting: dict[int, collections.deque[int]] = collections.defaultdict(collections.deque)
    seen: list[list[int]] = []
    for index, prompt in enumerate(prompts):
      if not len(prompt.ids):
        raise ValueError(f'prompt {index} is empty; begin it with the token that ends documents')
      keep = self.max_length - prompt.most if prompt.most < self.max_length else self.max_length
      seen.append([int(one) for one in prompt.ids[-keep:]])
      if prompt.most > 0:
        waiting[self._bucket(min(len(seen[-1]) + prompt.most - 1, self.max_length))].append(index)
    done = len(prompts) - sum(map(len, waiting.values()))
    for bucket, queue in sorted(waiting.items()):
      rows = self.rows(bucket)
      active: list[int] = []
      while queue or active:
        while queue and len(active) < rows:
          active.append(queue.popleft())
        tokens_BT, last_B = np.zeros((rows, bucket), np.int32), np.zeros(rows, np.int32)
        for row, index in enumerate(active):
          shown = (seen[index] + added[index])[-bucket:]
          tokens_BT[row, : len(shown)], last_B[row] = shown, len(shown) - 1
        next_B = np.asarray(self._call('continue', bucket, tokens_BT, last_B))
        going = []
        for index, token in zip(active, next_B.tolist(), strict=False):
          if token != end:
            added[index].append(token)
          over = token == end or len(added[index]) == prompts[index].most
          if not over and not (stop is not None and stop(index, added[index])):
            going.append(index)
        done, active = done + len(active) - len(going), going
        if on_call is not None:
          on_call(done, len(prompts))
    return added

  def _bucket(self, length: int) -> int:
    return next(bucket for bucket in self.buckets if length <= bucket)

  def _call(self, name: str, bucket: int, *arrays: np.ndarray) -> Any:
    known, ids = self.host.model.vocabulary, arrays if name == 'score' else arrays[:1]
    if min(part.min() for part in ids) < 0 or max(part.max() for part in ids) >= known:
      raise ValueError(
        f'ids lie in [{min(part.min() for part in ids)}, {max(part.max() for part in ids)}] and the model knows '
        f'[0, {known}): they were made by another tokenizer than it was trained with'
      )
    placed = sharding.place(arrays, self.mesh, ROWS)
    if (name, bucket) not in self._programs:
      function = {'score': self._score, 'continue': self._continue}[name]
      # check_vma would refuse proposals whose scans start from plain zeros.
      sharded = jax.shard_map(
        function,
        mesh=self.mesh,
        in_specs=(P(), *(ROWS for _ in arrays)),
        out_specs=ROWS,
        check_vma=False,
      )
      self._programs[name, bucket] = jax.jit(sharded).lower(self.parameters, *placed).compile()
    return self._programs[name, bucket](self.parameters, *placed)

  def _logits(self, parameters: Any, tokens_BT: jax.Array) -> jax.Array:
    return self.host.apply({'params': parameters}, tokens_BT, mutable=['losses', 'diagnostics'])[0]

  def _score(self, parameters: Any, tokens_BT: jax.Array, targets_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    logits_BTY = self._logits(parameters, tokens_BT)
    return train.cross_entropy(logits_BTY, targets_BT), logits_BTY.argmax(-1) == targets_BT

  def _continue(self, parameters: Any, tokens_BT: jax.Array, last_B: jax.Array) -> jax.Array:
    logits_BTY = self._logits(parameters, tokens_BT)
    logits_BY = jnp.take_along_axis(logits_BTY, last_B[:, None, None], axis=1)[:, 0, : self.vocabulary]
    return logits_BY.argmax(-1)
