import pytest

from asiarch_jax.shell import devices, machine

NVIDIA = ['/dev/nvidia0', '/dev/nvidia1', '/dev/nvidia2', '/dev/nvidia3', '/dev/nvidiactl', '/dev/nvidia-uvm']
ACCEL = [f'/dev/accel{n}' for n in range(4)]
VFIO = ['/dev/vfio', *(f'/dev/vfio/{n}' for n in range(8)), '/dev/vfio/vfio']


def test_every_worker_gets_its_own_gpus():
  assert devices.groups(2, 2, NVIDIA, {}) == ({'CUDA_VISIBLE_DEVICES': '0,1'}, {'CUDA_VISIBLE_DEVICES': '2,3'})
  assert [one['CUDA_VISIBLE_DEVICES'] for one in devices.groups(3, 1, NVIDIA, {})] == ['0', '1', '2']


def test_only_what_this_process_sees_is_shared_out():
  seen = devices.groups(2, 1, NVIDIA, {'CUDA_VISIBLE_DEVICES': '3, GPU-1f'})
  assert seen == ({'CUDA_VISIBLE_DEVICES': '3'}, {'CUDA_VISIBLE_DEVICES': 'GPU-1f'})


@pytest.mark.parametrize('files', [ACCEL, VFIO])
def test_chips_come_with_the_grid_of_their_process(files):
  first, second = devices.groups(2, 2, files, {})
  assert first == {
    'TPU_VISIBLE_CHIPS': '0,1', 'TPU_VISIBLE_DEVICES': '0,1', 'TPU_CHIPS_PER_PROCESS_BOUNDS': '1,2,1',
    'TPU_PROCESS_BOUNDS': '1,1,1',
  }  # fmt: skip
  assert second['TPU_VISIBLE_CHIPS'] == '2,3'


def test_amd():
  files = ['/dev/kfd', '/dev/dri/card0', '/dev/dri/renderD128', '/dev/dri/renderD129']
  assert devices.groups(2, 1, files, {}) == ({'ROCR_VISIBLE_DEVICES': '0'}, {'ROCR_VISIBLE_DEVICES': '1'})


def test_without_the_setting_nothing_is_pinned():
  assert devices.groups(3, 0, NVIDIA, {}) == ({}, {}, {})


@pytest.mark.parametrize(
  'workers, count, files, environment, said',
  [
    (1, 1, [], {}, 'no accelerator on this host'),
    (3, 2, NVIDIA, {}, 'need 6 accelerators; this host shows 4'),
    (2, 1, NVIDIA, {'CUDA_VISIBLE_DEVICES': '1'}, 'shows 1'),
    (1, 3, ACCEL, {}, 'form no grid of one process; use 1, 2, 4, 8'),
  ],
)
def test_what_cannot_be_shared_out_is_refused(workers, count, files, environment, said):
  with pytest.raises(ValueError, match=said):
    devices.groups(workers, count, files, environment)


def test_device_files_of_every_kind_are_found(tmp_path):
  for name in ('nvidia0', 'nvidiactl', 'accel1', 'vfio/3', 'vfio/vfio', 'dri/renderD128'):
    (tmp_path / 'dev' / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / 'dev' / name).touch()
  found = {str(path).removeprefix(f'{tmp_path}/dev/') for path in machine.accelerators(tmp_path)}
  assert found == {'nvidia0', 'accel1', 'vfio/3'}, 'a screen is no accelerator'
  (tmp_path / 'dev/kfd').touch()
  assert any('renderD128' in path for path in machine.accelerators(tmp_path))
