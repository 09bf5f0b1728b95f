"""The lock of a bucket, on a folder that is made to have no flock."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import threading
import time

import pytest
from etils import epath

from asiarch_jax.shell import writer_lock
from asiarch_jax.shell.writer_lock import WriterLock


@pytest.fixture
def path(tmp_path, monkeypatch):
  def none(*_):
    raise OSError(errno.ENOTSUP, 'no locks here')

  monkeypatch.setattr(fcntl, 'flock', none)
  for name, seconds in (('BEAT', 0.1), ('LEASE', 0.6), ('SETTLE', 0.05)):
    monkeypatch.setattr(writer_lock, name, seconds)
  return epath.Path(tmp_path) / 'writer.lock'


def note(path, **changes):
  path.write_text(json.dumps({'pid': 1, 'host': 'elsewhere', 'token': 'theirs', 'beat': 0, **changes}))


def test_a_holder_that_beats_is_respected(path):
  first = WriterLock(path)
  time.sleep(0.3)
  with pytest.raises(BlockingIOError, match=f'process {os.getpid()} on {socket.gethostname()} is appending'):
    WriterLock(path)
  first.confirm()
  first.release()
  assert not path.exists()
  WriterLock(path).release()


def test_a_holder_elsewhere_that_gives_no_sign_of_life_is_followed(path):
  note(path)
  began = time.monotonic()
  lock = WriterLock(path)
  assert time.monotonic() - began > 0.5, 'it was watched'
  assert json.loads(path.read_text())['pid'] == os.getpid()
  lock.release()


def test_a_holder_elsewhere_that_lives_is_respected_whatever_its_clock_says(path):
  note(path, since=0.0)
  ended = threading.Event()

  def live():
    beat = 0
    while not ended.wait(0.1):
      note(path, since=0.0, beat=(beat := beat + 1))

  thread = threading.Thread(target=live)
  thread.start()
  try:
    with pytest.raises(BlockingIOError, match='process 1 on elsewhere'):
      WriterLock(path)
  finally:
    ended.set()
    thread.join()


def test_a_dead_holder_on_this_host_is_followed_at_once(path):
  process = subprocess.Popen(['true'])
  process.wait()
  note(path, pid=process.pid, host=socket.gethostname())
  began = time.monotonic()
  WriterLock(path).release()
  assert time.monotonic() - began < 0.5


def test_a_note_that_cannot_be_read_holds_nothing(path):
  path.write_text('{')
  WriterLock(path).release()


def test_who_was_taken_for_dead_finds_out_before_it_appends(path):
  lock = WriterLock(path)
  lock.confirm()
  note(path)
  with pytest.raises(BlockingIOError, match=r'process 1 on elsewhere appends to .* now: .*no sign of life'):
    lock.confirm()
  lock.release()
  assert json.loads(path.read_text())['token'] == 'theirs', 'what another holds is not removed'


def test_of_two_that_take_over_at_once_one_holds(path, monkeypatch):
  monkeypatch.setattr(writer_lock, 'SETTLE', 0.3)
  note(path)
  held, refused = [], []

  def take():
    try:
      held.append(WriterLock(path))
    except BlockingIOError as error:
      refused.append(error)

  threads = [threading.Thread(target=take) for _ in range(2)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(held) == len(refused) == 1
  held[0].release()


def test_a_sign_of_life_that_is_under_way_does_not_outlive_its_holder(path, monkeypatch):
  lock, began, plain = WriterLock(path), threading.Event(), WriterLock._note

  def slow(self):
    began.set()
    time.sleep(0.3)
    return plain(self)

  monkeypatch.setattr(WriterLock, '_note', slow)
  assert began.wait(10)
  lock.release()
  time.sleep(0.5)
  assert not path.exists()
