"""Nearness of texts by a provider's embeddings, each asked for once in the life of a workdir."""

from __future__ import annotations

import base64
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from asiarch_jax.shell.journal import JsonLines

_EVENT = 'embedded'


class EmbeddedNeighbours:
  """The texts nearest by cosine, as `ports.Neighbours` says. `embed` gives vectors of texts (`llm.Gemini.embed`).

  The file at `path` keeps each vector by the hash of its text, of unit length in float16: 3,072 numbers are 8 kilobytes
  and the cosine is right to three digits. A text without a word in it is near to none. Threads take turns.
  """

  def __init__(self, embed: Callable[[Sequence[str]], Sequence[Sequence[float]]], path: str | os.PathLike[str]):
    self._embed, self._path = embed, path
    self._lock = threading.Lock()
    self._vectors = {
      event['sha256']: np.frombuffer(base64.b64decode(event['float16']), '<f2')
      for event in JsonLines(path, read_only=True).events()
      if event['event'] == _EVENT
    }

  def __call__(self, text: str, others: Sequence[str], count: int) -> tuple[int, ...]:
    """Returns the places in `others` of up to `count` texts nearest in meaning to `text`, nearest first.

    Raises:
      ValueError: a vector is not finite, or texts have vectors of several lengths (another model's file).
      Exception: what `embed` raises.
    """
    places = [place for place, other in enumerate(others) if other.strip()]
    if not text.strip() or not places or count <= 0:
      return ()
    with self._lock:
      self._add([text, *(others[place] for place in places)])
      vectors_ND = np.stack([self._vectors[_name(others[place])] for place in places]).astype(np.float32)
      vector_D = self._vectors[_name(text)].astype(np.float32)
    nearest = np.argsort(-(vectors_ND @ vector_D), kind='stable')[:count]
    return tuple(places[index] for index in nearest)

  def _add(self, texts: Iterable[str]) -> None:
    new = {_name(text): text for text in texts if _name(text) not in self._vectors}
    if not new:
      return
    lines = JsonLines(self._path)
    try:
      for name, values in zip(new, self._embed(list(new.values())), strict=True):
        vector_D = np.asarray(values, np.float32)
        known = next(iter(self._vectors.values()), vector_D)
        if not np.isfinite(vector_D).all() or vector_D.shape != known.shape:
          raise ValueError(
            f'{self._path}: a vector of {vector_D.size} numbers, '
            + (f'the others have {known.size}; remove the file' if vector_D.shape != known.shape else 'not all finite')
          )
        stored = (vector_D / max(float(np.linalg.norm(vector_D)), 1e-12)).astype('<f2')
        lines.write(_EVENT, sha256=name, float16=base64.b64encode(stored.tobytes()).decode())
        self._vectors[name] = stored
    finally:
      lines.close()


def _name(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()
