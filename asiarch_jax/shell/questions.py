"""The files through which a trained model is asked about text: what a jailed worker is given, and what it answers.

    <folder>/parameters.npz   of one replica, by path
    <folder>/questions.npz    ids (all requests, one after the other), lengths, scored, most, stops (rows of the JSON)
    <folder>/questions.json   max_length, tokens_per_call, vocabulary, end, tokenizer, and the lists of stop strings
    <folder>/tokenizer.json   where the tokenizer is a file

A worker sees the folder at the place of a corpus, read only; its answers are the arrays of the job's result. Text
becomes ids in the controller, so a worker needs the tokenizer for one thing: to see that a stop string was generated.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from asiarch_jax.shell import jobfolder, text_encoding

PARAMETERS, IDS, REST, TOKENIZER = 'parameters.npz', 'questions.npz', 'questions.json', 'tokenizer.json'


@dataclasses.dataclass(frozen=True)
class Request:
  """Ids, and what is wanted of them: the log-probability of the last `scored`, or what follows for `most` tokens.

  What follows ends early at a text in `stops`. `most` is None where the ids are to be scored.
  """

  ids: tuple[int, ...]
  scored: int = 0
  most: int | None = None
  stops: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Answer:
  """Log-probability in nats and whether greedy decoding gives the scored ids; or the ids that follow."""

  nats: float = 0.0
  greedy: bool = True
  following: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Terms:
  """What holds for all requests: see `training.likelihood.Scorer`. `end` is the id after every document."""

  max_length: int
  tokens_per_call: int
  vocabulary: int
  end: int


def write(
  folder: str | os.PathLike[str],
  requests: Sequence[Request],
  terms: Terms,
  encoding: text_encoding.Encoding,
  parameters: Mapping[str, Any],
) -> str:
  """Writes the folder and returns the hash of its content, which names the job that answers."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  stops = sorted({request.stops for request in requests})
  arrays = {
    'ids': np.asarray([one for request in requests for one in request.ids], np.int32),
    'lengths': np.asarray([len(request.ids) for request in requests], np.int64),
    'scored': np.asarray([request.scored for request in requests], np.int64),
    'most': np.asarray([-1 if request.most is None else request.most for request in requests], np.int64),
    'stops': np.asarray([stops.index(request.stops) for request in requests], np.int64),
  }
  rest = {'terms': dataclasses.asdict(terms), 'tokenizer': encoding.name, 'stops': stops}
  contents = {
    PARAMETERS: jobfolder.pack(parameters),
    IDS: jobfolder.pack(arrays),
    REST: json.dumps(rest, sort_keys=True).encode(),
    **({TOKENIZER: encoding.file} if encoding.file is not None else {}),
  }
  digest = hashlib.sha256()
  for name, content in sorted(contents.items()):
    jobfolder.replace(folder / name, content)
    digest.update(hashlib.sha256(content).digest())
  return digest.hexdigest()


def read(
  folder: str | os.PathLike[str],
) -> tuple[list[Request], Terms, text_encoding.Encoding, dict[str, np.ndarray]]:
  """Returns what `write` was given.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: a file is not what `write` wrote.
  """
  folder = pathlib.Path(folder)
  rest = json.loads((folder / REST).read_bytes())
  arrays = jobfolder.unpack((folder / IDS).read_bytes())
  tokenizer = folder / TOKENIZER
  encoding = text_encoding.encoding(str(tokenizer) if tokenizer.exists() else text_encoding.BYTES)
  if encoding.name != rest['tokenizer']:
    raise ValueError(f'{folder} was written with the tokenizer {rest["tokenizer"]} and holds {encoding.name}')
  ends = np.cumsum(arrays['lengths'])
  if len(arrays['ids']) != (ends[-1] if len(ends) else 0):
    raise ValueError(f'{folder / IDS} holds {len(arrays["ids"])} ids, not as many as its requests have')
  requests = [
    Request(
      ids=tuple(arrays['ids'][end - length : end].tolist()),
      scored=int(scored),
      most=None if most < 0 else int(most),
      stops=tuple(rest['stops'][stops]),
    )
    for end, length, scored, most, stops in zip(
      ends, arrays['lengths'], arrays['scored'], arrays['most'], arrays['stops'], strict=True
    )
  ]
  return requests, Terms(**rest['terms']), encoding, jobfolder.unpack((folder / PARAMETERS).read_bytes())


def pack(answers: Sequence[Answer]) -> dict[str, np.ndarray]:
  """Returns answers as the arrays of a job's result."""
  return {
    'nats': np.asarray([answer.nats for answer in answers], np.float64),
    'greedy': np.asarray([answer.greedy for answer in answers], bool),
    'lengths': np.asarray([len(answer.following) for answer in answers], np.int64),
    'following': np.asarray([one for answer in answers for one in answer.following], np.int32),
  }


def unpack(arrays: Mapping[str, np.ndarray], count: int) -> list[Answer]:
  """Returns the answers to `count` requests.

  Raises:
    ValueError: the arrays hold other things, or answers to another number of requests.
  """
  try:
    nats_N, greedy_N, lengths_N, following = (arrays[name] for name in ('nats', 'greedy', 'lengths', 'following'))
    sound = nats_N.shape == greedy_N.shape == lengths_N.shape == (count,) and following.ndim == 1
    sound = sound and ''.join(x.dtype.kind for x in (nats_N, greedy_N, lengths_N, following)) in ('fbii', 'fbuu')
    sound = sound and bool((lengths_N >= 0).all()) and int(lengths_N.sum()) == len(following)
  except (KeyError, AttributeError) as error:
    raise ValueError(f'the worker gave {sorted(arrays)}, which are no answers') from error
  if not sound:
    raise ValueError(f'the worker gave answers of shape {nats_N.shape} to {count} requests')
  ends = np.cumsum(lengths_N)
  return [
    Answer(float(nats), bool(greedy), tuple(following[end - length : end].tolist()))
    for nats, greedy, end, length in zip(nats_N, greedy_N, ends, lengths_N, strict=True)
  ]
