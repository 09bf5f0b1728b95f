"""Jobs on a real Ray cluster of several nodes on this machine; needs Ray (make cluster)."""

import os
import pathlib
import threading
import time

import numpy as np
import pytest

ray = pytest.importorskip('ray', reason='the extra [cluster] is not installed: make cluster')
from ray import cluster_utils  # noqa: E402

from asiarch_jax import config  # noqa: E402
from asiarch_jax.records import Job  # noqa: E402
from asiarch_jax.shell import cluster, runner, sandbox  # noqa: E402

HERE = pathlib.Path(__file__).parent
BODY = 'class Mixer:\n  def __init__(self, width, heads):\n    pass\n\n  def __call__(self, x):\n    return [x]\n'
JAIL = sandbox.available()[0] if sandbox.available() else 'none'


def settings(**changes):
  return config.Runner(
    **{'kind': 'cluster', 'platform': 'cpu', 'memory_gib': 1.0, 'jail': JAIL if JAIL == 'none' else 'auto', **changes}
  )


@pytest.fixture(scope='module')
def nodes():
  """A head without cores and two nodes of one core each."""
  os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, (str(HERE), os.environ.get('PYTHONPATH'))))
  made = cluster_utils.Cluster(initialize_head=True, head_node_args={'num_cpus': 0})
  made.add_node(num_cpus=1)
  made.add_node(num_cpus=1)
  ray.init(address=made.address, log_to_driver=False)
  yield made
  ray.shutdown()
  made.shutdown()


def cluster_runner(folder, corpus=None, **changes):
  return cluster.ClusterRunner(folder, settings(**changes), corpus, worker_module='stand_in_worker')


def test_a_job_gives_what_it_gives_here(nodes, tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(str(HERE))
  job = Job('m', BODY, {})
  there, progress = cluster_runner(tmp_path / 'there'), []
  got = there.run(job, progress.append)
  local = runner.LocalRunner(
    tmp_path / 'here', config.Runner(jail=JAIL, platform='cpu', memory_gib=1.0), worker_module='stand_in_worker'
  )
  want = local.run(job)
  assert got.failure is None and (got.key, got.findings, got.training) == (want.key, want.findings, want.training)
  for path, array in local.arrays(job.key).items():
    np.testing.assert_array_equal(there.arrays(job.key)[path], array)
  assert progress


def test_a_job_that_was_done_is_not_run_again(nodes, tmp_path):
  job = Job('m', f'import time\ntime.sleep(2)\n{BODY}', {})
  cluster_runner(tmp_path).run(job)
  began = time.monotonic()
  assert cluster_runner(tmp_path).run(job).failure is None
  assert time.monotonic() - began < 1.5


def test_a_failure_of_the_proposal_comes_back(nodes, tmp_path):
  failure = cluster_runner(tmp_path).run(Job('m', 'raise ValueError("no mixer")', {})).failure
  assert failure.kind == 'error' and 'no mixer' in failure.reason


def test_a_corpus_is_brought_along_or_asked_for(nodes, tmp_path, monkeypatch):
  (tmp_path / 'corpus').mkdir()
  (tmp_path / 'corpus/card.json').write_text('{"text": "brought"}')
  ask = f'raise ValueError(open(CORPUS + "/card.json").read())\n{BODY}'
  failure = cluster_runner(tmp_path / 'a', tmp_path / 'corpus').run(Job('m', ask, {}, corpus='x')).failure
  assert 'brought' in failure.reason
  monkeypatch.setattr(cluster, 'SHIPPED_BYTES', 3)
  here = cluster_runner(tmp_path / 'b', tmp_path / 'corpus')
  assert 'brought' in here.run(Job('m', ask, {}, corpus='x')).failure.reason  # this machine is the node
  (tmp_path / 'corpus').rename(tmp_path / 'gone')
  with pytest.raises(RuntimeError, match='is not on this node'):
    here.run(Job('m', ask + '# again', {}, corpus='x'))


def test_what_one_job_is_asked_is_not_kept_on_the_node(nodes, tmp_path):
  for name in ('corpus', 'asked'):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'text').write_text(name)
  here = cluster_runner(tmp_path / 'run', tmp_path / 'corpus')
  ask = f'raise ValueError(open(CORPUS + "/text").read(), CORPUS)\n{BODY}'
  asking = here.reading(tmp_path / 'asked').run(Job('m', ask, {}, kind='answer', corpus='y')).failure.reason
  assert "'asked'" in asking and 'asiarch-corpora' not in asking
  assert "'corpus'" in here.run(Job('m', ask, {}, corpus='x')).failure.reason


def test_a_lost_node_costs_its_job_only_and_the_job_is_run_elsewhere(nodes, tmp_path):
  third = nodes.add_node(num_cpus=1, resources={'third': 1})
  slow = f'import time\nprint("begun", flush=True)\ntime.sleep(6)\n{BODY}'
  jobs = [Job('m', f'{slow}# {number}', {}) for number in range(3)]
  here, done, said = cluster_runner(tmp_path), {}, []

  def run(job):
    done[job.key] = here.run(job, said.append)

  threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
  for thread in threads:
    thread.start()
  time.sleep(5)
  nodes.remove_node(third, allow_graceful=False)
  for thread in threads:
    thread.join(120)
  assert [done[job.key].failure for job in jobs] == [None] * 3
  lost = [progress for progress in said if progress.stage == 'lost']
  assert len(lost) == 1 and 'run again elsewhere' in lost[0].note


def test_nodes_that_go_on_being_lost_end_it(nodes, tmp_path, monkeypatch):
  here = cluster_runner(tmp_path, retries=1)

  def gone(job, on_progress):
    raise ray.exceptions.WorkerCrashedError

  monkeypatch.setattr(here, '_once', gone)
  with pytest.raises(ConnectionError, match=r'lost its node 2 times \(runner\.retries = 1\)'):
    here.run(Job('m', BODY, {}))


def test_stop_ends_what_runs(nodes, tmp_path):
  here, ended = cluster_runner(tmp_path), []

  def run():
    with pytest.raises(runner.RunnerStoppedError):
      here.run(Job('m', f'import time\ntime.sleep(300)\n{BODY}', {}))
    ended.append(time.monotonic())

  thread = threading.Thread(target=run)
  thread.start()
  time.sleep(4)
  here.stop()
  thread.join(30)
  assert ended, 'the job goes on'
  with pytest.raises(runner.RunnerStoppedError):
    here.run(Job('m', BODY, {}))
