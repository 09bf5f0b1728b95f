"""Opens what would change the host: settings, devices, the core pattern."""

print('ATTACK', flush=True)
paths = ['/proc/sys/kernel/core_pattern', '/proc/sys/kernel/hostname', '/proc/sysrq-trigger', '/dev/mem', '/dev/kmsg']
paths += ['/sys/fs/cgroup/memory/memory.limit_in_bytes', '/dev/sda', '/dev/vda', f'/proc/{TARGET["pid"]}/oom_score_adj']
for path in paths:
  try:
    open(path, 'r+').close()
    print('BREACH', path)
  except OSError as error:
    print(error)


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
