"""The section of task scores: what it says of noise, and the tables of zero-shot suites."""

import dataclasses
import re

import pytest

from asiarch_jax import config
from asiarch_jax.evidence import task_noise
from asiarch_jax.records import TaskScore, ZeroShot, ZeroShotScore, entries_of
from asiarch_jax.report import page, scores
from tests import samples

EXPERIMENT = config.Experiment()
ARCHIVE = samples.archive(20)


def plain(markup):
  return re.sub(r'\s+', ' ', re.sub(r'<[^>]+>', ' ', markup))


def measured(entry, value, name=None, limit=500, **extra):
  rows = (
    ZeroShotScore('piqa', 'acc', value, 0.02, limit, 0.5),
    ZeroShotScore('swde', 'contains', value / 2, 0.01, limit, 0.0),
    ZeroShotScore('wikitext', 'word_perplexity', 4.2e12, float('nan'), limit),
  )
  return ZeroShot(entry, name or f'm{entry}', limit, 128, '0.4.13', rows, **extra)


def test_the_page_says_how_much_of_the_task_term_is_noise():
  said = plain(scores.section(ARCHIVE, EXPERIMENT))
  entries = entries_of(ARCHIVE)
  found = task_noise.task_noise(
    [entry.scores for entry in entries if entry.role == 'candidate'], entries[0].scores, EXPERIMENT.fitness
  )
  assert f'{found.share:.0%} of their variance is noise' in said
  assert f'interval {found.low:.0%} to {found.high:.0%}' in said
  mean = task_noise.mean_accuracy(entries[0].scores)
  assert f'{task_noise.moved(mean.stderr, mean.value, EXPERIMENT.fitness):.2f} where it deserves 0.50' in said
  assert 'recall_slice' in said and 'mqar' in said and 'bits_per_byte' not in said


def test_with_a_baseline_alone_it_says_what_one_error_is_worth():
  said = plain(scores.section(ARCHIVE[:1], EXPERIMENT))
  assert 'where it deserves 0.50' in said and 'of their variance' not in said


def test_without_scores_there_is_no_section():
  assert scores.section([], EXPERIMENT) == ''
  bare = [dataclasses.replace(entry, scores=()) for entry in entries_of(ARCHIVE)]
  assert scores.section(bare, EXPERIMENT) == ''
  bits = (TaskScore('bits_per_byte', 2.0, 0.1, 9, 'bits_per_byte'),)
  assert scores.section([dataclasses.replace(bare[0], scores=bits)], EXPERIMENT) == ''


def test_zero_shot_results_stand_beside_each_other_the_baseline_first():
  ids = [entry.id for entry in entries_of(ARCHIVE)]
  said = scores.section(ARCHIVE, EXPERIMENT, [measured(ids[5], 0.6), measured(0, 0.5, 'delta_net')])
  heads = re.findall(r'<th scope="col"[^>]*>(\w+)<small>#(\d+)', said)
  assert heads == [('delta_net', '0'), (f'm{ids[5]}', str(ids[5]))]
  text = plain(said)
  assert 'the first 500 items' in text and '0.6000 ± 0.0200' in text and '4.20e+12' in text
  assert 'mean of 2' in text and '0.4500 ± 0.0112' in text  # of 0.6 and 0.3
  worth = task_noise.moved(0.0112, 0.375, EXPERIMENT.fitness)
  assert f'would be worth {worth:.2f} instead of 0.50' in text


def test_other_conditions_are_another_table_and_unknown_entries_are_passed_over():
  said = scores.section(ARCHIVE, EXPERIMENT, [measured(0, 0.5), measured(0, 0.5, limit=100), measured(999, 0.5)])
  assert len(re.findall('<h3>Zero-shot', said)) == 2 and '999' not in said
  many = [measured(entry.id, 0.5) for entry in entries_of(ARCHIVE)]
  assert f'{len(many) - scores.ENTRIES} more entries were measured' in plain(scores.section(ARCHIVE, EXPERIMENT, many))


@pytest.mark.parametrize('text', ['<script>alert(1)</script>', '"><img src=x>'])
def test_names_are_text(text):
  said = scores.section(ARCHIVE, EXPERIMENT, [measured(0, 0.5, text)])
  assert '<script' not in said and '<img' not in said


def test_the_page_has_the_section(tmp_path):
  path = page.write(ARCHIVE, tmp_path, experiment=EXPERIMENT, zero_shot=[measured(0, 0.5, 'delta_net')])
  html = path.read_text()
  assert '<h2 id="tasks">' in html and 'Zero-shot, the first 500 items' in html and 'href="#tasks"' in html
