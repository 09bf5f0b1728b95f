"""A system-call filter as a classic BPF program: what a training process never calls and an exploit does.

Refused calls fail with EPERM, `clone3` with ENOSYS so that the C library falls back to `clone`, whose flags a filter
can read. Any other architecture's calls kill the process. Format: linux/seccomp.h and linux/filter.h.
"""

from __future__ import annotations

import platform
import struct

# Numbers on (x86_64, aarch64); None: the architecture has no such call.
REFUSED: dict[str, tuple[int | None, int | None]] = {
  'acct': (163, 89),
  'add_key': (248, 217),
  'bpf': (321, 280),
  'chroot': (161, 51),
  'delete_module': (176, 106),
  'fanotify_init': (300, 262),
  'finit_module': (313, 273),
  'fsconfig': (431, 431),
  'fsmount': (432, 432),
  'fsopen': (430, 430),
  'fspick': (433, 433),
  'init_module': (175, 105),
  'io_uring_enter': (426, 426),
  'io_uring_register': (427, 427),
  'io_uring_setup': (425, 425),
  'ioperm': (173, None),
  'iopl': (172, None),
  'kexec_file_load': (320, 294),
  'kexec_load': (246, 104),
  'keyctl': (250, 219),
  'lookup_dcookie': (212, 18),
  'mount': (165, 40),
  'mount_setattr': (442, 442),
  'move_mount': (429, 429),
  'name_to_handle_at': (303, 264),
  'nfsservctl': (180, 42),
  'open_by_handle_at': (304, 265),
  'open_tree': (428, 428),
  'perf_event_open': (298, 241),
  'pidfd_getfd': (438, 438),
  'pivot_root': (155, 41),
  'process_vm_readv': (310, 270),
  'process_vm_writev': (311, 271),
  'ptrace': (101, 117),
  'quotactl': (179, 60),
  'reboot': (169, 142),
  'request_key': (249, 218),
  'setdomainname': (171, 162),
  'sethostname': (170, 161),
  'setns': (308, 268),
  'swapoff': (168, 225),
  'swapon': (167, 224),
  'syslog': (103, 116),
  'umount2': (166, 39),
  'unshare': (272, 97),
  'userfaultfd': (323, 282),
  'vhangup': (153, 58),
}
CLONE = (56, 220)
CLONE3 = 435  # the same everywhere
ARCHITECTURES = {'x86_64': (0, 0xC000003E), 'aarch64': (1, 0xC00000B7)}  # column above, AUDIT_ARCH_*
# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
X32_BIT = 0x40000000
EPERM, ENOSYS = 1, 38
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # ld abs, jeq, jge, jset, ret
NUMBER_AT, ARCHITECTURE_AT, ARGUMENT_AT = 0, 4, 16  # offsets in struct seccomp_data


def program(machine: str = '') -> bytes | None:
  """Returns the filter for an architecture (default: this machine's), None where the table has none."""
  known = ARCHITECTURES.get(machine or platform.machine())
  if known is None:
    return None
  column, audit = known
  lines = [
    (LOAD, 0, 0, ARCHITECTURE_AT),
    (EQUAL, 1, 0, audit),
    (RETURN, 0, 0, KILL),
    (LOAD, 0, 0, NUMBER_AT),
  ]
  if column == 0:  # the x32 calls would go round every comparison below
    lines += [(AT_LEAST, 0, 1, X32_BIT), (RETURN, 0, 0, ERRNO | ENOSYS)]
  lines += [(EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, ERRNO | ENOSYS)]
  for numbers in REFUSED.values():
    number = numbers[column]
    if number is not None:
      lines += [(EQUAL, 0, 1, number), (RETURN, 0, 0, ERRNO | EPERM)]
  lines += [
    (EQUAL, 0, 3, CLONE[column]),
    (LOAD, 0, 0, ARGUMENT_AT),
    (ANY_BIT, 0, 1, NAMESPACES),
    (RETURN, 0, 0, ERRNO | EPERM),
    (RETURN, 0, 0, ALLOW),
  ]
  return b''.join(struct.pack('=HBBI', *line) for line in lines)
