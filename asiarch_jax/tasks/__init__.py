"""What is measured beside the training loss. A new task is one file and one row here."""

from asiarch_jax.tasks import bits_per_byte, mqar, recall_slice, selective_copying
from asiarch_jax.tasks.task import Task

TASKS: dict[str, Task] = {
  'bits_per_byte': bits_per_byte.TASK,
  'recall_slice': recall_slice.TASK,
  'mqar': mqar.TASK,
  'selective_copying': selective_copying.TASK,
}
