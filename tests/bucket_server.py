"""A bucket on this machine: as much of Cloud Storage's JSON API as gcsfs, tensorstore and Orbax ask for.

    with BucketServer() as server:
      environment = server.environment          # what a process needs to find it
      server.objects['bucket', 'some/name']     # what lies there

`fail(method, pattern, status)` makes requests fail until `mend()`; `slow` is a wait in seconds before every answer.
"""

import base64
import contextlib
import email.parser
import email.policy
import hashlib
import http.server
import json
import re
import threading
import time
import urllib.parse
import uuid


class BucketServer:
  def __init__(self):
    self.objects = {}  # (bucket, name): (content, generation)
    self.requests = []
    self.slow = 0.0
    self._failing = []
    self._uploads = {}
    self._generation = 0
    self._lock = threading.RLock()
    outer = self

    class Handler(_Handler):
      bucket_server = outer

    self._server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    self._server.daemon_threads = True
    self.url = f'http://127.0.0.1:{self._server.server_port}'

  @property
  def environment(self):
    """Variables for gcsfs and for tensorstore."""
    return {
      'STORAGE_EMULATOR_HOST': self.url,
      'TENSORSTORE_GCS_HTTP_URL': self.url,
      'TENSORSTORE_GOOGLE_AUTH_TEST_TOKEN': 'token',
      'GCE_METADATA_HOST': '127.0.0.1:1',
      'NO_GCE_CHECK': 'true',
      'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',  # asks another service what kind of bucket it is
    }

  def __enter__(self):
    threading.Thread(target=self._server.serve_forever, daemon=True).start()
    return self

  def __exit__(self, *_):
    self._server.shutdown()
    self._server.server_close()

  def fail(self, method, pattern, status):
    self._failing.append((method, re.compile(pattern), status))

  def mend(self):
    self._failing.clear()

  def names(self, bucket):
    return sorted(name for where, name in self.objects if where == bucket)

  def put(self, bucket, name, content, generation_match=None):
    """Stores an object and returns its metadata, None where the condition does not hold."""
    with self._lock:
      present = self.objects.get((bucket, name))
      if generation_match is not None and generation_match != (present[1] if present else 0):
        return None
      self._generation += 1
      self.objects[bucket, name] = (content, self._generation)
      return self.metadata(bucket, name)

  def metadata(self, bucket, name):
    content, generation = self.objects[bucket, name]
    quoted = urllib.parse.quote(name, safe='')
    return {
      'kind': 'storage#object',
      'bucket': bucket,
      'name': name,
      'size': str(len(content)),
      'generation': str(generation),
      'metageneration': '1',
      'id': f'{bucket}/{name}/{generation}',
      'md5Hash': base64.b64encode(hashlib.md5(content).digest()).decode(),
      'timeCreated': '2026-11-26T00:00:00.000Z',
      'updated': '2026-11-26T00:00:00.000Z',
      'storageClass': 'STANDARD',
      'contentType': 'application/octet-stream',
      'mediaLink': f'{self.url}/download/storage/v1/b/{bucket}/o/{quoted}?alt=media',
      'selfLink': f'{self.url}/storage/v1/b/{bucket}/o/{quoted}',
    }


class _Handler(http.server.BaseHTTPRequestHandler):
  bucket_server: BucketServer
  protocol_version = 'HTTP/1.1'

  def log_message(self, *_):
    pass

  def do_GET(self):
    self._answer('GET')

  def do_POST(self):
    self._answer('POST')

  def do_PUT(self):
    self._answer('PUT')

  def do_DELETE(self):
    self._answer('DELETE')

  def do_PATCH(self):
    self._answer('PATCH')

  def _answer(self, method):
    server = self.bucket_server
    body = self._body()
    server.requests.append((method, self.path))
    time.sleep(server.slow)
    for failing, pattern, status in server._failing:
      if method == failing and pattern.search(urllib.parse.unquote(self.path)):
        self._json({'error': {'code': status, 'message': f'told to fail with {status}'}}, status)
        return
    with server._lock:
      status, content, headers = self._handled(method, self.path, body)
    self._send(status, content, headers)

  def _handled(self, method, target, body):
    """Returns status, content and headers of one request, also of one inside a batch."""
    path, _, query = target.partition('?')
    asked = {key: values[-1] for key, values in urllib.parse.parse_qs(query, keep_blank_values=True).items()}
    if path.startswith('/batch/'):
      return self._batch(body)
    found = re.fullmatch(r'/upload/storage/v1/b/([^/]+)/o', path)
    if found:
      return self._upload(method, found[1], asked, body)
    found = re.fullmatch(r'/storage/v1/b/([^/]+)/o/(.+)/(?:rewriteTo|copyTo)/b/([^/]+)/o/(.+)', path)
    if found:
      return self._copy(*(urllib.parse.unquote(part) for part in found.groups()))
    found = re.fullmatch(r'(?:/download)?/storage/v1/b/([^/]+)/o/(.+)', path)
    if found:
      return self._object(method, found[1], urllib.parse.unquote(found[2]), asked)
    found = re.fullmatch(r'/storage/v1/b/([^/]+)/o', path)
    if found:
      return self._listing(found[1], asked)
    found = re.fullmatch(r'/storage/v1/b/([^/]+)(/storageLayout)?', path)
    if found:
      return self._said({'kind': 'storage#bucket', 'name': found[1], 'location': 'US'})
    return self._said({'error': {'code': 404, 'message': f'{method} {path} is not here'}}, 404)

  def _object(self, method, bucket, name, asked):
    server = self.bucket_server
    if (bucket, name) not in server.objects:
      return self._said({'error': {'code': 404, 'message': f'No such object: {bucket}/{name}'}}, 404)
    content, generation = server.objects[bucket, name]
    if method == 'DELETE':
      if 'ifGenerationMatch' in asked and int(asked['ifGenerationMatch']) != generation:
        return self._said({'error': {'code': 412, 'message': 'another generation'}}, 412)
      del server.objects[bucket, name]
      return 204, b'', {}
    if method == 'PATCH' or asked.get('alt') != 'media':
      return self._said(server.metadata(bucket, name))
    if 'ifGenerationNotMatch' in asked and int(asked['ifGenerationNotMatch']) == generation:
      return 304, b'', {}
    headers = {'X-Goog-Generation': str(generation), 'Content-Type': 'application/octet-stream'}
    ranged = re.fullmatch(r'bytes=(\d*)-(\d*)', self.headers.get('Range', ''))
    if not ranged:
      return 200, content, headers
    if not ranged[1]:
      first, last = max(0, len(content) - int(ranged[2])), len(content) - 1
    else:
      first, last = int(ranged[1]), min(int(ranged[2] or len(content) - 1), len(content) - 1)
    if first >= len(content):
      return 416, b'', {'Content-Range': f'bytes */{len(content)}'}
    return 206, content[first : last + 1], {**headers, 'Content-Range': f'bytes {first}-{last}/{len(content)}'}

  def _listing(self, bucket, asked):
    server = self.bucket_server
    prefix, delimiter = asked.get('prefix', ''), asked.get('delimiter', '')
    items, prefixes = [], set()
    for name in server.names(bucket):
      if not name.startswith(prefix) or name < asked.get('startOffset', ''):
        continue
      rest = name[len(prefix) :]
      if delimiter and delimiter in rest:
        prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
      else:
        items.append(server.metadata(bucket, name))
    return self._said({'kind': 'storage#objects', 'items': items, 'prefixes': sorted(prefixes)})

  def _copy(self, bucket, name, to_bucket, to_name):
    server = self.bucket_server
    if (bucket, name) not in server.objects:
      return self._said({'error': {'code': 404, 'message': f'No such object: {bucket}/{name}'}}, 404)
    resource = server.put(to_bucket, to_name, server.objects[bucket, name][0])
    size = resource['size']
    return self._said({'done': True, 'resource': resource, 'objectSize': size, 'totalBytesRewritten': size})

  def _upload(self, method, bucket, asked, body):
    server, kind = self.bucket_server, asked.get('uploadType')
    match = int(asked['ifGenerationMatch']) if 'ifGenerationMatch' in asked else None
    if 'upload_id' in asked:
      return self._part(asked['upload_id'], body)
    if kind == 'resumable':
      name = asked.get('name') or json.loads(body)['name']
      upload = uuid.uuid4().hex
      server._uploads[upload] = [bucket, name, match, b'']
      place = f'{server.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={upload}'
      return 200, b'{}', {'Location': place, 'Content-Type': 'application/json'}
    if kind == 'multipart':
      described, body = self._parts(body)
      name = json.loads(described)['name']
    else:
      name = asked['name']
    return self._stored(bucket, name, body, match)

  def _part(self, upload, body):
    server = self.bucket_server
    bucket, name, match, before = server._uploads[upload]
    content = before + body
    total = self.headers.get('Content-Range', '').rpartition('/')[2]
    if total in ('', '*') or len(content) < int(total):
      if total != '*' or body:
        server._uploads[upload][3] = content
      return 308, b'', {'Range': f'bytes=0-{len(content) - 1}'}
    del server._uploads[upload]
    return self._stored(bucket, name, content, match)

  def _stored(self, bucket, name, content, match):
    stored = self.bucket_server.put(bucket, name, content, match)
    if stored is None:
      return self._said({'error': {'code': 412, 'message': 'another generation'}}, 412)
    return self._said(stored)

  def _batch(self, body):
    """Answers requests inside a multipart/mixed body, each an HTTP request of its own."""
    boundary, parts = f'batch_{uuid.uuid4().hex}', []
    for part in self._mime(body).iter_parts():
      head, _, inner = part.get_payload(decode=True).partition(b'\r\n\r\n')
      method, target, _ = (head.decode().splitlines()[0] + ' HTTP/1.1').split(' ', 2)
      status, content, _ = self._handled(method, target, inner)
      answer = (
        f'HTTP/1.1 {status} OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n'.encode()
      )
      named = (
        f'--{boundary}\r\nContent-Type: application/http\r\nContent-ID: response-{part.get("Content-ID", "")}\r\n\r\n'
      )
      parts.append(named.encode() + answer + content + b'\r\n')
    return (
      200,
      b''.join(parts) + f'--{boundary}--\r\n'.encode(),
      {'Content-Type': f'multipart/mixed; boundary={boundary}'},
    )

  def _parts(self, body):
    """Returns the two parts of an upload: what describes the object, and its content, byte by byte."""
    boundary = re.search(r'boundary="?\'?([^"\';]+)', self.headers['Content-Type'])[1].encode()
    _, described, content, _ = body.split(b'--' + boundary)
    inside = [part.partition(b'\r\n\r\n' if b'\r\n\r\n' in part else b'\n\n')[2] for part in (described, content)]
    return inside[0].strip(), inside[1].removesuffix(b'\r\n' if inside[1].endswith(b'\r\n') else b'\n')

  def _mime(self, body):
    head = f'Content-Type: {self.headers["Content-Type"]}\r\n\r\n'.encode()
    return email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)

  def _body(self):
    if self.headers.get('Transfer-Encoding', '') == 'chunked':
      content = b''
      while size := int(self.rfile.readline().split(b';')[0], 16):
        content += self.rfile.read(size)
        self.rfile.readline()
      self.rfile.readline()
      return content
    return self.rfile.read(int(self.headers.get('Content-Length') or 0))

  @staticmethod
  def _said(document, status=200):
    return status, json.dumps(document).encode(), {'Content-Type': 'application/json'}

  def _json(self, document, status):
    self._send(*self._said(document, status))

  def _send(self, status, content, headers):
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
      self.send_response(status)
      for name, value in headers.items():
        self.send_header(name, value)
      self.send_header('Content-Length', str(len(content)))
      self.end_headers()
      if self.command != 'HEAD':
        self.wfile.write(content)
