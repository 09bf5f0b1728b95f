"""From text to token ids: bytes, or any Hugging Face `tokenizers` JSON file."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from etils import epath

BYTES = 'bytes'
END_TOKENS = ('<|endoftext|>', '<|end_of_text|>', '</s>', '<eos>', '<|eos|>', '[EOS]', '[SEP]')
PIECE = 1 << 15  # characters that are tokenised together: time grows faster than linearly in the length of a string
BREAK = re.compile(r'(?<=\S) (?=\S)')  # byte-level and metaspace tokenizers give the space to the word after it


@dataclasses.dataclass(frozen=True)
class Encoding:
  """`encode(text)` gives token ids of `dtype` in [0, vocabulary); `end` is the id that follows every document.

  `decode(ids)` gives text back; bytes that are not UTF-8, such as half a character, become U+FFFD.
  """

  name: str  # bytes, or sha256: and the hash of `file`
  vocabulary: int
  end: int
  dtype: str
  encode: Callable[[str], np.ndarray]
  decode: Callable[[Sequence[int]], str]
  file: bytes | None = None  # the JSON of the tokenizer, to lie beside the corpus


def encoding(tokenizer: str) -> Encoding:
  """Returns the encoding `bytes`, or that of a tokenizer JSON file.

  The end marker is byte 0, or the first of END_TOKENS that the tokenizer has, else one id more than it has.

  Raises:
    FileNotFoundError: no such file.
    ImportError: `tokenizers` is not installed; the message names the extra.
    ValueError: the file is not a tokenizer, or its vocabulary exceeds 2^32.
  """
  if tokenizer == BYTES:
    return Encoding(
      BYTES,
      256,
      0,
      'uint8',
      lambda text: np.frombuffer(text.encode('utf-8'), np.uint8),
      lambda ids: bytes(ids).decode('utf-8', 'replace'),
    )
  path = epath.Path(tokenizer)
  if not path.exists():
    raise FileNotFoundError(f'{tokenizer}: no such tokenizer; give "bytes" or a Hugging Face tokenizers JSON file')
  try:
    import tokenizers
  except ImportError as error:
    raise ImportError(
      f"tokenizers is needed for {tokenizer} and is not installed; pip install 'asiarch-jax[data]'"
    ) from error
  written = path.read_bytes()
  try:
    model = tokenizers.Tokenizer.from_str(written.decode('utf-8'))
  except Exception as error:  # the library raises bare Exception
    raise ValueError(f'{tokenizer}: not a Hugging Face tokenizers JSON file ({error})') from error
  model.no_truncation()
  model.no_padding()
  size = 1 + max(model.get_vocab(with_added_tokens=True).values(), default=-1)
  ends = [model.token_to_id(token) for token in END_TOKENS]
  end = next((number for number in ends if number is not None), size)
  vocabulary = max(size, end + 1)
  dtype = 'uint16' if vocabulary <= 1 << 16 else 'uint32'

  def encode(text: str) -> np.ndarray:
    pieces = [model.encode(piece, add_special_tokens=False).ids for piece in _pieces(text)]
    return np.asarray([number for piece in pieces for number in piece], dtype)

  def decode(ids: Sequence[int]) -> str:
    return model.decode(list(ids), skip_special_tokens=False)

  return Encoding(f'sha256:{hashlib.sha256(written).hexdigest()}', vocabulary, end, dtype, encode, decode, written)


def _pieces(text: str) -> Iterator[str]:
  """Yields the text in pieces of at least PIECE characters, cut before a space where there is one."""
  start = 0
  while len(text) - start > 2 * PIECE:
    found = BREAK.search(text, start + PIECE, start + 2 * PIECE)
    end = found.start() if found else start + 2 * PIECE
    yield text[start:end]
    start = end
  yield text[start:]
