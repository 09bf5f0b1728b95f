import pytest

from asiarch_jax import config
from asiarch_jax.shell import hosts

JAX = {'JAX_COORDINATOR_ADDRESS': 'gpu-0:8476', 'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '1'}
TPU = {'TPU_WORKER_ID': '0', 'TPU_WORKER_HOSTNAMES': 't-0.svc,t-1.svc,t-2.svc,t-3.svc'}
SLURM = {'SLURM_PROCID': '1', 'SLURM_NTASKS': '3', 'SLURM_JOB_NODELIST': 'node[04,07-08]'}


@pytest.mark.parametrize(
  'settings, environment, place',
  [
    ({}, JAX, (1, 2, 'gpu-0', 8476)),
    ({}, TPU, (0, 4, 't-0.svc', hosts.PORT)),
    ({}, SLURM, (1, 3, 'node04', hosts.PORT)),
    ({}, {**SLURM, **JAX}, (1, 2, 'gpu-0', 8476)),
    ({'address': '10.0.0.2:9999', 'hosts': 3, 'host': 2}, {}, (2, 3, '10.0.0.2', 9999)),
    ({'address': '10.0.0.2', 'host': 0}, JAX, (0, 2, '10.0.0.2', hosts.PORT)),
    ({'address': '[fd00::2]:9999', 'hosts': 2, 'host': 1}, {}, (1, 2, 'fd00::2', 9999)),
    ({'address': 'fd00::2', 'hosts': 2, 'host': 1}, {}, (1, 2, 'fd00::2', hosts.PORT)),
  ],
)
def test_a_place_is_what_settings_and_environment_say(settings, environment, place):
  found = hosts.place(config.Runner(kind='spmd', **settings), environment)
  assert (found.host, found.hosts, found.controller, found.port) == place
  assert found.leads == (place[0] == 0)


@pytest.mark.parametrize(
  'settings, environment, said',
  [
    ({}, {}, 'nothing says which of how many hosts this is: start the command through launch/'),
    ({'hosts': 2, 'host': 0}, {}, r'--config\.runner\.address=HOST:PORT'),
    ({'host': 4}, TPU, 'this is host 4 of 4, and hosts count from 0'),
    ({}, {**JAX, 'JAX_PROCESS_ID': 'one'}, "JAX_PROCESS_ID = 'one'"),
    ({'address': 'a:99999', 'hosts': 2, 'host': 0}, {}, "'a:99999' is no address"),
  ],
)
def test_a_place_that_makes_no_sense_is_refused(settings, environment, said):
  with pytest.raises(ValueError, match=said):
    hosts.place(config.Runner(kind='spmd', **settings), environment)


def test_names_become_addresses_for_workers_that_cannot_look_them_up():
  assert hosts.resolved({'TPU_WORKER_HOSTNAMES': 'localhost,127.0.0.2'}) == {
    'TPU_WORKER_HOSTNAMES': f'{hosts.address_of("localhost")},127.0.0.2'
  }
  assert hosts.resolved({}) == {}
