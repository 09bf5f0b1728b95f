"""Named suites of synthetic tasks: what is asked at which sizes, and how the answers become a score. No JAX here."""

from asiarch_jax.suites import mad, mqar
from asiarch_jax.suites.settings import Recipe, Sequences, Setting, Suite

__all__ = ['SUITES', 'Recipe', 'Sequences', 'Setting', 'Suite']

SUITES: dict[str, Suite] = {
  suite.name: suite for suite in (mad.MAD, mad.BASE, mad.SMALL, mqar.MQAR, mqar.FORGETTING, mqar.SMALL)
}
