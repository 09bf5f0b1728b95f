import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from asiarch_jax.training import sharding


@pytest.mark.parametrize(
  'devices, replicas, data_parallel, expected',
  [
    (1, 4, 1, (1, 1)),
    (8, 8, 1, (8, 1)),
    (8, 8, 2, (4, 2)),
    (8, 4, 1, (4, 1)),
    (8, 6, 1, (6, 1)),
    (8, 7, 2, (1, 2)),
    (3, 4, 1, (2, 1)),
    (16, 1, 4, (1, 4)),
  ],
)
def test_as_many_devices_as_divide_the_replicas(devices, replicas, data_parallel, expected):
  assert sharding.shape(devices, replicas, data_parallel) == expected


def test_too_few_devices_are_refused_with_the_remedy():
  with pytest.raises(ValueError, match=r'training\.data_parallel = 4 needs as many devices, 2 at hand'):
    sharding.shape(2, 4, 4)


def test_parts_that_do_not_come_out_are_refused():
  with pytest.raises(ValueError, match=r'training\.fsdp = 3 does not divide the 1 devices that share a batch'):
    sharding.mesh(jax.devices(), 1, fsdp=3)


def test_axes_are_auto():
  assert sharding.mesh(jax.devices(), 1).axis_types == 3 * (AxisType.Auto,)


def test_placed_values_come_back():
  mesh, value = sharding.mesh(jax.devices(), 1), np.arange(6).reshape(1, 6)
  np.testing.assert_array_equal(sharding.place({'a': value}, mesh, sharding.REPLICAS)['a'], value)


@pytest.mark.parametrize('devices, replicas, batch, found', [(4, 8, 4, (4, 1)), (4, 6, 4, (2, 2)), (3, 8, 6, (1, 3))])
def test_devices_of_several_hosts_are_all_used(devices, replicas, batch, found):
  assert sharding.full_shape(devices, replicas, batch) == found


def test_what_several_hosts_cannot_share_is_refused():
  with pytest.raises(ValueError, match=r'4 devices of several hosts cannot share 3 replicas .* batches of 6'):
    sharding.full_shape(4, 3, 6)


def test_an_array_of_this_process_is_its_own():
  assert sharding.host(np.arange(3)).tolist() == sharding.host(jnp.arange(3)).tolist() == [0, 1, 2]
  assert sharding.agreed(0.5) == 0.5


def test_one_process_holds_all_parts():
  mesh = sharding.mesh(jax.devices(), 1)
  assert sharding.own_part(mesh, 4, 8) == (slice(0, 4), slice(0, 8))


def test_a_part_lies_where_it_belongs():
  mesh, part = sharding.mesh(jax.devices(), 1), np.arange(12).reshape(3, 4)
  placed = sharding.place_part({'a': part}, mesh, sharding.REPLICAS, (3, 4), (0, 0))
  np.testing.assert_array_equal(placed['a'], part)
