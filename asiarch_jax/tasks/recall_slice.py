"""Accuracy on the tokens of natural text that could have been recalled from the window itself.

Zoology (Arora et al. 2023, arXiv 2312.04927, section 3) calls a token an associative-recall hit when the bigram that it
ends occurred earlier in the sequence, and finds that these tokens explain 82 % of the perplexity gap between attention
and gated convolutions. So the slice is measured directly, on held-out windows, with the model trained on the text.
A position is in the slice when the n-gram that ends in its target, context and target alike, ended at an earlier
target of the same window. Zoology also leaves out bigrams that are frequent in the training text, which may have been
memorised; here the longer n-gram of bytes does part of that, and no table of counts is needed.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from asiarch_jax import config
from asiarch_jax.batch import Batch
from asiarch_jax.tasks import answers
from asiarch_jax.tasks.task import Task

BYTE_VOCABULARY = 256  # up to here tokens are taken to be bytes
# n for bytes. Byte bigrams recur everywhere: they end at a third of the positions of a window of 128, and copying what
# followed last time is right for 15 % of the contexts seen before. With 6 it is right for 73 %, the gram is longer than
# the commonest word between its spaces, and such a window still has 7 positions. docs/DATA.md has the other n.
BYTE_GRAM = 6
TOKEN_GRAM = 2  # n for subwords: the bigram of the paper


def repeated(tokens_BT: Int[Array, 'B T'], targets_BT: Int[Array, 'B T'], n: int) -> Bool[Array, 'B T']:
  """Returns where the n-gram that ends in the target occurred earlier in the window.

  Position t stands for (tokens[t-n+2], ..., tokens[t], targets[t]); the first n - 2 positions have no such context and
  are False. Every pair of positions is compared, as attention does, in one fused reduction. Against ranking grams by
  sorting, that takes a fifth of the time to compile and to run for 128 tokens, and twice the time to run for 2048.
  """
  positions_T = jnp.arange(tokens_BT.shape[1])
  same_BTT = (targets_BT[:, :, None] == targets_BT[:, None, :]) & (positions_T[:, None] > positions_T)
  for back in range(n - 1):
    context_BT = jnp.pad(tokens_BT, ((0, 0), (back, 0)), constant_values=-1)[:, : tokens_BT.shape[1]]
    same_BTT &= context_BT[:, :, None] == context_BT[:, None, :]
  return jnp.any(same_BTT, axis=-1) & (positions_T >= n - 2)


def gram(vocabulary: int) -> int:
  """Returns the n of the n-gram for tokens of this vocabulary."""
  return BYTE_GRAM if vocabulary <= BYTE_VOCABULARY else TOKEN_GRAM


def score(logits_BTY: Float[Array, 'B T Y'], batch: Batch) -> tuple[Float[Array, ' B'], Float[Array, ' B']]:
  """Returns, for each window, how many tokens of the slice are the likeliest one, and how many the slice has."""
  slice_BT = repeated(batch.tokens, batch.targets, gram(logits_BTY.shape[-1]))
  return answers.accuracy(logits_BTY, batch._replace(weights=batch.weights * slice_BT))


def chance(tasks: config.Tasks, vocabulary: int) -> float:
  """Returns the accuracy of a uniform guess. The most frequent byte of English, the space, would reach more."""
  del tasks
  return 1 / vocabulary


TASK = Task('recall_slice', 'accuracy', 'corpus', score, chance)
