"""The files between controller and worker: what is written comes back, and what is not ours is refused."""

import hashlib
import io
import json
import os
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from asiarch_jax.records import Failure, Finding, Job, JobResult, Progress, to_json
from asiarch_jax.shell import jobfolder

SECRET = '0f' * 32
JOB = Job('m', 'class Mixer: pass\r\n# \u00e9\n', {'seed': 1}, known={'f': 2})
RESULT = JobResult(JOB.key, (Finding('shape', True, 'fine', 0.5),), failure=Failure('error', 'raised', 'log'))
ARRAYS = {'params/w': np.arange(6.0, dtype=np.float32).reshape(2, 3), 'params/b': np.float32(2), 'n': np.arange(3)}


def test_a_job_comes_back(tmp_path):
  jobfolder.write_job(tmp_path / 'new', JOB)
  assert jobfolder.read_job(tmp_path / 'new') == JOB
  assert sorted(os.listdir(tmp_path / 'new')) == ['job.json', 'mixer.py']


def test_a_changed_mixer_is_refused(tmp_path):
  jobfolder.write_job(tmp_path, JOB)
  (tmp_path / 'mixer.py').write_text('class Mixer: ...')
  with pytest.raises(ValueError, match='differs from the source'):
    jobfolder.read_job(tmp_path)


def test_a_broken_job_is_named(tmp_path):
  jobfolder.write_job(tmp_path, JOB)
  (tmp_path / 'job.json').write_text('{"name": 3')
  with pytest.raises(ValueError, match=r'job\.json is not a job'):
    jobfolder.read_job(tmp_path)


def test_a_result_comes_back(tmp_path):
  jobfolder.write_result(tmp_path, RESULT, ARRAYS, SECRET)
  result, sha256 = jobfolder.read_result(tmp_path, SECRET)
  data = (tmp_path / 'arrays.npz').read_bytes()
  assert result == RESULT
  assert sha256 == hashlib.sha256(data).hexdigest()
  arrays = jobfolder.unpack(data)
  assert arrays.keys() == ARRAYS.keys()
  for path, array in ARRAYS.items():
    assert arrays[path].dtype == array.dtype and arrays[path].shape == array.shape
    assert np.array_equal(arrays[path], array)
  assert np.array_equal(np.load(tmp_path / 'arrays.npz', allow_pickle=False)['params/w'], ARRAYS['params/w'])


def test_the_same_arrays_have_the_same_bytes():
  assert jobfolder.pack(ARRAYS) == jobfolder.pack(dict(reversed(ARRAYS.items())))


def test_bfloat16_is_kept_as_float32():
  arrays = jobfolder.unpack(jobfolder.pack({'w': np.array([1.5, -2], ml_dtypes.bfloat16)}))
  assert arrays['w'].dtype == np.float32 and arrays['w'].tolist() == [1.5, -2]


def test_fortran_order_and_empty_arrays_come_back():
  given = {'f': np.asfortranarray(np.arange(6).reshape(2, 3)), 'e': np.zeros((0, 4))}
  back = jobfolder.unpack(jobfolder.pack(given))
  assert np.array_equal(back['f'], given['f']) and back['e'].shape == (0, 4)


def test_objects_are_not_stored():
  with pytest.raises(ValueError, match="array 'w' has dtype object"):
    jobfolder.pack({'w': np.array([{}])})


@pytest.mark.parametrize(
  'change',
  [
    lambda d: d['result'].update(fingerprint='better'),
    lambda d: d.update(arrays_sha256='0' * 64),
    lambda d: d.update(seal='0' * 64),
    lambda d: d.update(seal=None),
    lambda d: d.update(seal='\u00e9'),
    lambda d: d.update(seal='\ud800'),
    lambda d: d.pop('seal'),
    lambda d: d.update(more=1),
  ],
)
def test_any_change_breaks_the_seal(tmp_path, change):
  jobfolder.write_result(tmp_path, RESULT, {}, SECRET)
  document = json.loads((tmp_path / 'result.json').read_text())
  change(document)
  (tmp_path / 'result.json').write_text(json.dumps(document))
  with pytest.raises(jobfolder.ForgedResultError):
    jobfolder.read_result(tmp_path, SECRET)


def test_another_secret_does_not_open(tmp_path):
  jobfolder.write_result(tmp_path, RESULT, {}, SECRET)
  with pytest.raises(jobfolder.ForgedResultError, match='seal'):
    jobfolder.read_result(tmp_path, 'ab' * 32)


def test_whatever_depth_a_result_has_it_is_refused(tmp_path):
  """One depth is read by the parser and is too deep to be written again."""
  for depth in range(900, 1000):
    nested = '[' * depth + ']' * depth
    (tmp_path / 'result.json').write_text(f'{{"result": {nested}, "arrays_sha256": "", "seal": ""}}')
    with pytest.raises(jobfolder.ForgedResultError):
      jobfolder.read_result(tmp_path, SECRET)


@pytest.mark.parametrize(
  'header',
  ['{[]: 1}', "{'descr': (), 'fortran_order': False, 'shape': ()}",
   "{'descr': '|b1', 'fortran_order': False, 'shape': (True,)}"],
)  # fmt: skip
def test_a_header_that_is_none_is_refused(header):
  text = f'{header}\n'.encode()
  member = b'\x93NUMPY\x01\x00' + len(text).to_bytes(2, 'little') + text + b'\x01'
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as archive:
    archive.writestr('w.npy', member)
  with pytest.raises(jobfolder.ForgedResultError):
    jobfolder.unpack(buffer.getvalue())


@pytest.mark.parametrize('result', [{'key': 'k', 'scores': 7}, {'key': 'k', 'mixer_parameters': float('inf')}])
def test_a_sealed_thing_that_is_no_result_is_refused(tmp_path, result):
  body = {'result': result, 'arrays_sha256': ''}
  (tmp_path / 'result.json').write_text(json.dumps({**body, 'seal': jobfolder.seal(body, SECRET)}))
  with pytest.raises(jobfolder.ForgedResultError, match='no result'):
    jobfolder.read_result(tmp_path, SECRET)


def test_no_result_is_not_a_forged_result(tmp_path):
  with pytest.raises(FileNotFoundError):
    jobfolder.read_result(tmp_path, SECRET)


@pytest.mark.parametrize('kind', ['link', 'hard link', 'pipe', 'folder', 'large', 'deep', 'text', 'loop'])
def test_what_is_no_plain_file_of_json_is_refused(tmp_path, kind):
  path = tmp_path / 'result.json'
  (tmp_path / 'other').write_text('{}')
  {
    'link': lambda: path.symlink_to(tmp_path / 'other'),
    'hard link': lambda: path.hardlink_to(tmp_path / 'other'),
    'pipe': lambda: os.mkfifo(path),
    'folder': path.mkdir,
    'large': lambda: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), jobfolder.RESULT_BYTES + 1),
    'deep': lambda: path.write_text('[' * 1_000_000),
    'text': lambda: path.write_bytes(b'\xff\xfe'),
    'loop': lambda: path.symlink_to(path),
  }[kind]()
  with pytest.raises(jobfolder.ForgedResultError):
    jobfolder.read_result(tmp_path, SECRET)


def npz(name, member, compression=zipfile.ZIP_STORED):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w', compression) as archive:
    archive.writestr(name, member)
  return buffer.getvalue()


def npy(dtype, shape, body):
  header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
  header += b' ' * (118 - len(header) - 1) + b'\n'
  return b'\x93NUMPY\x01\x00' + len(header).to_bytes(2, 'little') + header + body


class Payload:
  def __reduce__(self):
    return pytest.fail, ('a pickle was run',)


@pytest.mark.parametrize(
  'data',
  [
    npz('w.npy', npy('|O', '()', pickle.dumps(Payload()))),
    npz('w.npy', npy('<f4', '(3,)', b'\0' * 8)),
    npz('w.npy', npy('<f4', '(1000000000000,)', b'\0' * 8)),
    npz('w.npy', npy('<f4', '(-1,)', b'')),
    npz('w.npy', npy('<f4', '(' * 500, b'')),
    npz('w.npy', npy('<U8', '(1,)', b'\0' * 32)),
    npz('w.npy', b'\0' * 4096, zipfile.ZIP_DEFLATED),
    npz('w.txt', b'text'),
    npz('w.npy', b'\x93NUMPY\x09\x00'),
    b'no zip at all',
    b'',
  ],
)
def test_arrays_that_are_not_plain_numbers_are_refused(data):
  with pytest.raises(jobfolder.ForgedResultError):
    jobfolder.unpack(data)


def test_paths_and_trees_are_inverse():
  tree = {'params': {'layers_0': {'w': np.ones(2)}, 'b': np.zeros(1)}, 0: np.ones(1)}
  flat = jobfolder.by_path(tree)
  assert list(flat) == ['0', 'params/b', 'params/layers_0/w']
  assert jobfolder.by_path(jobfolder.nested(flat)).keys() == flat.keys()


@pytest.mark.parametrize('name', ['a/b', '', '..'])
def test_a_key_that_is_no_path_is_refused(name):
  with pytest.raises(ValueError, match='is no part of a path'):
    jobfolder.by_path({'params': {name: np.ones(1)}})


def test_progress_comes_back(tmp_path):
  sent = [Progress('train', 1, 2, 3.5, None, 1.0, 'note\n'), Progress('compile', loss=float('nan'))]
  for one in sent:
    jobfolder.append_progress(tmp_path, one)
  lines = (tmp_path / 'progress.jsonl').read_bytes().splitlines()
  assert [to_json(jobfolder.parse_progress(line)) for line in lines] == [to_json(one) for one in sent]


@pytest.mark.parametrize(
  'line',
  [b'', b'{', b'[]', b'{"stage": 1, "more": 2}', b'[' * 4000, b'{"stage": "x", "step": 1e999}', b'x' * 5000, b'\xff'],
)
def test_nonsense_is_no_progress(line):
  assert jobfolder.parse_progress(line) is None
