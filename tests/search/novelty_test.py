"""What counts as known, and which design is nearest."""

from asiarch_jax.search import novelty
from tests import samples


def apart(a, b):
  return float(sum(a[key] != b[key] for key in a))


def test_a_fingerprint_names_the_first_that_had_it():
  outcomes = (
    samples.entry(3),
    samples.rejection(4, 'duplicate', fingerprint=samples.entry(3).fingerprint),
    samples.entry(5),
  )
  assert novelty.known(outcomes) == {samples.entry(3).fingerprint: 3, samples.entry(5).fingerprint: 5}


def test_a_function_that_training_turned_down_is_known_and_one_that_never_got_there_is_not():
  outcomes = (
    samples.rejection(3, 'hopeless', fingerprint='a'),
    samples.rejection(4, 'checks', fingerprint='b'),
    samples.rejection(5, 'killed', fingerprint='c'),
    samples.rejection(6, 'source'),
  )
  assert novelty.known(outcomes) == {'a': 3}


def test_an_entry_outranks_an_older_rejection_of_the_same_function():
  entry = samples.entry(9)
  outcomes = (samples.rejection(3, 'non_finite', fingerprint=entry.fingerprint), entry)
  assert novelty.known(outcomes) == {entry.fingerprint: 9}


def test_nearest_skips_entries_without_genome_and_orders_by_distance():
  outcomes = (
    samples.entry(3),
    samples.entry(4, genome={'x': 1, 'y': 2}),
    samples.entry(5, genome={'x': 1, 'y': 3}),
    samples.entry(6, genome={'x': 1, 'y': 2}),
    samples.rejection(7, genome={'x': 1, 'y': 3}),
  )
  found = novelty.nearest({'x': 1, 'y': 3}, outcomes, apart, count=2)
  assert [(entry.id, distance) for entry, distance in found] == [(5, 0.0), (4, 1.0)]
  assert novelty.nearest({'x': 1, 'y': 3}, (), apart) == ()
