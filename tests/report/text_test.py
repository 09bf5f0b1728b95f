import dataclasses
import io
import re

import pytest
from rich.console import Console
from scipy import stats

from asiarch_jax import config, records
from asiarch_jax.evidence import posterior, promotion
from asiarch_jax.report import text
from tests import samples

STEERING = '[red]no markup[/red] \x1b]0;title\x07 \x1b[2J\x9b31m\x08 end'


def printed(renderable):
  """Returns what a terminal is sent, colours left out."""
  stream = io.StringIO()
  Console(file=stream, width=200, color_system=None).print(renderable)
  return stream.getvalue()


def by_models(**changes):
  return dataclasses.replace(samples.thought_of(samples.entry(5), samples.np.random.default_rng(1)), **changes)


def test_an_outcome_says_what_models_had_to_do_with_it():
  earlier = (records.Attempt(samples.proposal('first'), 'checks', 'it sees the future'),)
  entry = by_models(earlier=earlier, spend=records.Spend(3, 12_000, 0.05, 9.0))
  shown = printed(text.outcome_page(entry, [entry]))
  assert 'gemini-x · fresh' in shown
  for origin in entry.proposal.origins:
    assert f'idea: {origin.component} ({origin.kind}' in shown and origin.reference in shown
  assert 'earlier attempt, checks: it sees the future' in shown
  assert 'marks as the model gave them: performance 7, innovation 6, complexity 6.5; score of each call 6.40' in shown
  assert entry.analysis.weaknesses in shown and 'analysis by gemini-x-001' in shown
  assert f'papers found for it: {", ".join(entry.analysis.retrieved)}' in shown
  assert 'language models took 3 calls, 12,000 tokens, $0.0500, 9.0 s' in shown


def test_a_rejection_says_it_too():
  rejection = samples.thought_of(samples.rejection(5), samples.np.random.default_rng(1))
  shown = printed(text.outcome_page(rejection, [rejection]))
  assert 'idea: ' in shown and 'language models took ' in shown


def test_an_outcome_without_models_says_nothing_of_them():
  for outcome in (samples.entry(5), samples.rejection(6)):
    shown = printed(text.outcome_page(outcome, [outcome]))
    for word in ('idea:', 'earlier attempt', 'language models', 'analysis by', 'weaknesses', 'papers', 'marks as'):
      assert word not in shown, word


def test_an_analysis_that_fell_back_on_measurements_is_told_from_a_models():
  entry = by_models(analysis=samples.analysis())
  assert text.analysed_by(entry) == 'the measurements alone'
  assert text.analysed_by(samples.entry(5)) == '' == text.analysed_by(samples.entry(5, analysed=False))


def test_the_summary_says_what_models_cost_for_each_find():
  outcomes = samples.model_archive(20)
  shown = printed(text.summary(outcomes, config.Experiment()))
  assert 'Language models took ' in shown and ' for each measured, ' in shown and ' for each better.' in shown
  assert 'Language models' not in printed(text.summary(samples.archive(20), config.Experiment()))


@pytest.mark.parametrize('kind', ['entry', 'rejection'])
def test_text_from_models_neither_is_markup_nor_steers_the_terminal(kind):
  origins = (records.Origin(STEERING, 'cognition', STEERING),)
  proposal = samples.proposal(STEERING, motivation=STEERING, author=STEERING, source=STEERING, origins=origins)
  told = {'proposal': proposal, 'earlier': (records.Attempt(proposal, STEERING, STEERING),)}
  outcome = samples.rejection(5, STEERING, STEERING)
  if kind == 'entry':
    analysis = records.Analysis(*[STEERING] * 5, (STEERING,), STEERING, (STEERING,), STEERING)
    told |= {'analysis': analysis, 'judgement': samples.judgement(reason=STEERING)}
    outcome = samples.entry(5)
  outcome = dataclasses.replace(outcome, **told)
  usage = dict.fromkeys(('prompt', 'cached', 'thoughts', 'reply'), 1)
  call = dict.fromkeys(('role', 'model', 'reply', 'system', 'prompt'), STEERING)
  call |= {'usage': usage, 'dollars': 0.1, 'seconds': 1.0, 'attempts': 1, 'fault': '', 'detail': ''}
  views = (
    text.outcome_page(outcome, [outcome], source=True, diff=True),
    text.tree([outcome]), text.leaderboard([outcome]), text.summary([outcome], config.Experiment()), text.trace([call]),
  )  # fmt: skip
  shown = ''.join(printed(view) for view in views)
  assert not {'\x1b', '\x07', '\x08', '\x9b'} & set(shown)
  assert shown.count('[red]no markup[/red]') > 8
  assert 'no markup\n' in text.visible('no markup\n\tkept')


def test_a_damaged_exchange_is_counted_and_the_others_are_shown():
  call = {**dict.fromkeys(text.TOLD, ''), 'usage': dict.fromkeys(('prompt', 'cached', 'thoughts', 'reply'), 1)}
  call |= {'dollars': 0.5, 'seconds': 1.0, 'attempts': 1, 'reply': 'an answer'}
  shown = printed(text.trace([{'event': 'exchange'}, call]))
  assert '1 exchanges are damaged' in shown and 'an answer' in shown and '1 calls, $0.5000' in shown


def test_a_baseline_that_was_rejected_is_no_proposal():
  failed = samples.rejection(0)
  failed = dataclasses.replace(failed, proposal=dataclasses.replace(failed.proposal, author='baseline'))
  assert '0 proposals: 0 measured' in printed(text.summary([failed], config.Experiment()))
  assert '1 proposals: 0 measured' in printed(text.summary([samples.rejection(3)], config.Experiment()))


@pytest.mark.parametrize('width', [30, 40, 60, 80, 100, 140])
def test_a_narrow_terminal_loses_columns_and_no_digit(width):
  outcomes = samples.archive(30)
  stream = io.StringIO()
  Console(file=stream, width=width, color_system=None).print(text.leaderboard(outcomes, 40, 'delta_net'))
  lines = stream.getvalue().splitlines()
  assert max(map(len, lines)) <= width and lines[1].split()[0] == '#'
  wide = printed(text.leaderboard(outcomes, 40, 'delta_net')).splitlines()
  for line, whole in zip(lines[3:-1], wide[3:-1], strict=True):
    words = line.split()
    assert words[0] == whole.split()[0]  # the number to give to `asiarch show`
    assert set(re.findall(r'[-+]?[\d,]+\.?\d*', line)) <= set(re.findall(r'[-+]?[\d,]+\.?\d*', whole)), line


def test_what_is_believed_stands_beside_what_was_measured():
  outcomes = samples.archive(30)
  found = posterior.believed(outcomes, 'delta_net')
  shown = printed(text.leaderboard(outcomes, 40, 'delta_net'))
  assert 'believed' in shown and all(f'{one.mean:+.4f}' in shown for one in found.values())
  assert 'believed' not in printed(text.leaderboard(outcomes, 40))
  said = ' '.join(printed(text.summary(outcomes, config.Experiment())).split())
  chosen = promotion.promoted(tuple(found.values()))
  assert f'Taken together, {len(chosen)} are believed better' in said


def test_of_a_change_in_either_direction_the_last_word_counts():
  def taught(id, *lessons):
    return dataclasses.replace(samples.entry(id), analysis=samples.analysis(*lessons))

  outcomes = [
    taught(3, 'helps: decay = head, not none (+0.221 ± 0.083 bits over 1 pair)', 'helps: a against b (+0.1 ± 0.05)'),
    taught(4, 'unclear: decay = none, not head (+0.010 ± 0.050 bits over 6 pairs)', 'hurts: gate = a, not b (-0.1)'),
  ]
  assert text.learned(outcomes) == [
    'helps: a against b (+0.1 ± 0.05)',
    'hurts: gate = a, not b (-0.1)',
    'unclear: decay = none, not head (+0.010 ± 0.050 bits over 6 pairs)',
  ]


def test_copies_of_the_baseline_are_told_afterwards():
  blind = dataclasses.replace(config.Experiment(), evidence=config.Evidence(placebo=1.0))
  outcomes = samples.archive(30)
  said = ' '.join(printed(text.summary(outcomes, blind)).split())
  measured = sum(getattr(outcome, 'role', '') == 'candidate' for outcome in outcomes)
  assert f'{measured} of the measured are copies of delta_net that nobody was told of' in said
  better = sum(text.verdict(outcome) == 'better' for outcome in outcomes if getattr(outcome, 'role', '') == 'candidate')
  low, high = stats.beta.ppf((0.025, 0.975), (better, better + 1), (measured - better + 1, measured - better))
  assert 0 < better < measured and f'{better} measured better' in said
  assert f'(95 % interval {low:.0%} to {high:.0%}, given the replicas' in said
  assert 'copies of' not in printed(
    text.summary(outcomes, dataclasses.replace(blind, evidence=config.Evidence(placebo=0.0)))
  )
