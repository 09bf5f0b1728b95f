import dataclasses
import html.parser
import itertools
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import time
import xml.etree.ElementTree

import pytest

from asiarch_jax import config, records
from asiarch_jax.evidence import placebo
from asiarch_jax.evidence.effects import Effect
from asiarch_jax.report import curve, details, figures, markup, page
from asiarch_jax.report.drawing import ROLES, label
from asiarch_jax.report.text import copies
from tests import samples
from tests.marks import slow_but

EXPERIMENT = config.Experiment()
PICTURES = {'leaderboard.png', 'progress.png', 'discoveries.png', 'lineage.png', 'losses.png', 'failures.png'}
VOID = {'meta', 'br', 'hr', 'img', 'input', 'link'}


class Reader(html.parser.HTMLParser):
  """Reads a page as a browser does: its elements, attributes and text, and whether every element is closed."""

  def __init__(self, text):
    super().__init__()
    self.open, self.elements, self.text = [], [], []
    self.feed(text)
    self.close()
    assert not self.open, f'never closed: {self.open}'

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open and self.open[-1] == tag, f'</{tag}> closes {self.open[-3:]}'
    self.open.pop()

  def handle_data(self, data):
    if not {'script', 'style'} & set(self.open):
      self.text.append(data)

  def named(self, tag):
    return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(autouse=True)
def pictures_where_looked_at(request, monkeypatch):
  """Leaves the pictures beside the page blank but where they or their time are the subject."""
  if not any(word in request.node.name for word in ('cannot_be_written', 'five_hundred', 'any_archive')):
    monkeypatch.setattr(page, 'png', lambda drawing: b'')


def written(outcomes, folder, **options):
  path = page.write(outcomes, folder, experiment=options.pop('experiment', EXPERIMENT), **options)
  text = path.read_text('utf-8')
  return text, Reader(text)


@pytest.mark.words
def test_how_often_a_copy_of_the_baseline_was_taken_for_better_stands_beside_the_discoveries(tmp_path):
  outcomes = samples.archive(30)
  blind = config.Experiment(evidence=config.Evidence(placebo=1.0))
  _, reader = written(outcomes, tmp_path, experiment=blind)
  assert copies(outcomes, blind) and copies(outcomes, blind) in ' '.join(''.join(reader.text).split())
  _, reader = written(outcomes, tmp_path, experiment=config.Experiment(evidence=config.Evidence(placebo=0.0)))
  assert 'nobody was told of' not in ''.join(reader.text)


@pytest.fixture(scope='module')
def forty(tmp_path_factory):
  folder = tmp_path_factory.mktemp('forty')
  outcomes = samples.archive(40, seed=2)
  return outcomes, folder, *written(outcomes, folder)


def test_one_page_and_a_picture_for_each_figure(forty):
  _, folder, text, _ = forty
  assert {path.name for path in folder.iterdir()} == PICTURES | {'index.html'}
  assert text.startswith('<!doctype html>')
  for name in PICTURES:
    assert (folder / name).read_bytes().startswith(b'\x89PNG')


@pytest.mark.words
def test_the_page_is_titled_by_the_name_of_the_experiment(tmp_path):
  for name in ('first', 'second <b>'):
    text, _ = written(samples.archive(4), tmp_path, experiment=dataclasses.replace(EXPERIMENT, name=name))
    assert f'<title>{markup.escape(name)} · asiarch</title>' in text


def test_the_page_asks_the_network_for_nothing(forty):
  _, _, text, reader = forty
  assert not reader.named('link') and not reader.named('img')
  assert all('src' not in attributes for _, attributes in reader.elements)
  assert 'http' not in text and '@import' not in text and 'url(' not in re.sub(r'url\(#\w+\)', '', text)


def test_every_link_leads_somewhere_on_the_page(forty):
  _, _, _, reader = forty
  targets = {attributes['id'] for _, attributes in reader.elements if 'id' in attributes}
  links = {attributes['href'] for attributes in reader.named('a')}
  assert links and all(link.startswith('#') and link[1:] in targets for link in links), links


def test_sections_are_unique_and_figures_say_what_they_show(forty):
  _, _, _, reader = forty
  sections = [attributes['id'] for attributes in reader.named('h2')]
  assert len(sections) == len(set(sections)) == 12 and 'discovery' in sections
  pictures = [attributes for attributes in reader.named('svg') if attributes.get('class') == 'figure']
  assert len(pictures) == 5 == len(reader.named('figcaption'))
  assert all(len(attributes['aria-label']) > 20 for attributes in pictures)


def test_figures_take_their_colours_from_the_page(forty):
  _, _, text, _ = forty
  drawings = ' '.join(re.findall(r'<svg role="img".*?</svg>', text, flags=re.S))
  assert 'var(--ink)' in drawings and 'var(--blue)' in drawings
  assert not {color for color in ROLES if color in drawings}


def test_every_outcome_has_its_details_and_every_entry_its_row(forty):
  outcomes, _, _, reader = forty
  found = {attributes.get('id') for attributes in reader.named('details')}
  assert {f'outcome-{outcome.id}' for outcome in outcomes} <= found
  rows = [attributes for attributes in reader.named('tr') if 'data-text' in attributes]
  assert len(rows) == len(records.entries_of(outcomes))


def test_the_headline_counts_what_is_in_the_archive(forty):
  outcomes, _, _, reader = forty
  text = ' '.join(''.join(reader.text).split())
  candidates = [o for o in records.entries_of(outcomes) if o.role == 'candidate']
  rejected = len(outcomes) - len(records.entries_of(outcomes))
  shown = sum(entry.evidence.low > 0 for entry in candidates)
  assert f'{len(candidates) + rejected} proposals: {len(candidates)} measured, {rejected} rejected.' in text
  assert f'{shown} of {len(candidates)} are better than delta_net' in text


@pytest.mark.slow
def test_writing_twice_gives_the_same_page(tmp_path):
  outcomes = samples.archive(12)
  first, _ = written(outcomes, tmp_path / 'a')
  second, _ = written(tuple(reversed(outcomes)), tmp_path / 'b')
  assert first == second


HOSTILE = (
  '<script>alert(1)</script>"\'><img src=x onerror=alert(2)>&lt; $x$ ${title} --> ]]> \x00\x1b[31m \ud800 数学 🙂'
)


def test_text_from_proposals_never_becomes_markup(tmp_path):
  proposal = records.Proposal(
    HOSTILE, HOSTILE, f'"""{HOSTILE}"""\nclass Mixer: "</code></pre><script>"\n', 0, (0, 77), HOSTILE, HOSTILE
  )
  child = dataclasses.replace(proposal, source=proposal.source + '# </pre>\n<b>changed</b>\n', parent_id=3)
  analysis = records.Analysis(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, (f'helps: {HOSTILE} (x)',))
  findings = (records.Finding(HOSTILE, False, HOSTILE), records.Finding(HOSTILE, True, HOSTILE))
  best = dataclasses.replace(
    samples.entry(4, 0.2), proposal=child, analysis=analysis, findings=findings,
    scores=(records.TaskScore(HOSTILE, 0.5, 0.1, 3),), judgement=samples.judgement(reason=HOSTILE),
  )  # fmt: skip
  first = dataclasses.replace(samples.entry(3, 0.1), proposal=proposal)
  rejection = records.Rejection(5, HOSTILE, HOSTILE, child, findings)
  effect = Effect(HOSTILE, {HOSTILE: 1}, HOSTILE, 3, 0.1, 0.05, 0.15)
  experiment = dataclasses.replace(EXPERIMENT, name=HOSTILE)
  text, reader = written(
    (*samples.baselines(), first, best, rejection),
    tmp_path,
    experiment=experiment,
    effect_rows=[effect],
    journal_events=[{'event': HOSTILE}],
  )
  assert len(reader.named('script')) == 1 and not reader.named('img') and not reader.named('b')
  assert not any(name.startswith('on') for _, attributes in reader.elements for name in attributes)
  assert text.count('&lt;script&gt;') > 20
  assert '\x00' not in text
  shown = ''.join(reader.text)
  assert '<script>alert(1)</script>' in shown and '${title}' in shown and '数学 🙂' in shown


def hostile_search():
  """Returns an archive and a journal in which every text that a model can write is HOSTILE."""
  origins = tuple(records.Origin(HOSTILE, kind, HOSTILE) for kind in ('cognition', 'analysis', 'original'))
  proposal = samples.proposal(HOSTILE, author=HOSTILE, operator=HOSTILE, motivation=HOSTILE, origins=origins)
  earlier = (records.Attempt(proposal, HOSTILE, HOSTILE),)
  analysis = dataclasses.replace(samples.analysis(HOSTILE), weaknesses=HOSTILE, retrieved=(HOSTILE,), author=HOSTILE)
  told = {'proposal': proposal, 'spend': records.Spend(2, 300, 0.1, 4.0), 'earlier': earlier}
  judged = dataclasses.replace(samples.judgement(reason=HOSTILE), raw=(1.0, 2.0, 3.0), calls=(4.0,))
  entry = dataclasses.replace(samples.entry(3, 0.1), analysis=analysis, judgement=judged, **told)
  rejection = dataclasses.replace(samples.rejection(4, HOSTILE, HOSTILE), **told)
  events = [
    samples.call(HOSTILE, model=HOSTILE, fault=HOSTILE),
    {'event': 'sampled', 'cycle': 3, 'chosen': HOSTILE, 'samples': [{'name': HOSTILE, 'rank': 1.0, 'loss': None}]},
    *({'event': event, 'cycle': 3, 'name': HOSTILE, 'reason': HOSTILE} for event in ('repeated', 'repaired')),
  ]
  return (*samples.baselines(), entry, rejection), events


def test_text_from_models_never_becomes_markup(tmp_path):
  outcomes, events = hostile_search()
  text, reader = written(outcomes, tmp_path, journal_events=events)
  assert len(reader.named('script')) == 1 and not reader.named('img')
  assert not any(name.startswith('on') for _, attributes in reader.elements for name in attributes)
  # each new text is there as text: an idea of each kind, attempts, weaknesses, papers, author; the paper; the call
  shown = ''.join(reader.text)
  for before in (*(f'({kind}' for kind in ('cognition ', 'analysis #', 'original ')), 'Weaknesses', 'papers found'):
    assert f'{before}<script>alert(1)</script>' in shown, before
  for before in ('analysis by', 'Earlier attempts: 1'):
    assert f'{before}<script>alert(1)</script>' in shown, before
  assert shown.count('1 <script>alert(1)</script>') == 2, 'the fault, in its row and in the sum'
  assert text.count('&lt;script&gt;') > 40


def test_a_search_without_models_says_nothing_of_them(forty, tmp_path):
  outcomes, _, _, reader = forty
  shown = ''.join(reader.text)
  for word in ('Language models', 'Origin of ideas', 'Papers', 'Weaknesses', 'analysis by', 'marks as given', 'ideas'):
    assert word not in shown, word
  events = [{'event': 'repaired', 'cycle': 3, 'name': 'a', 'reason': 'b'}]  # an offline researcher mends too
  text, _ = written(outcomes, tmp_path, journal_events=events)
  assert not any(said in text for said in ('Language models', 'Before training', 'Best improvement so far'))


@pytest.fixture(scope='module')
def thought(tmp_path_factory):
  outcomes = samples.model_archive(40, seed=2)
  folder = tmp_path_factory.mktemp('thought')
  return outcomes, folder, *written(outcomes, folder, journal_events=samples.model_journal(outcomes))


@pytest.mark.slow
def test_a_search_with_models_shows_origins_spend_and_discoveries_against_each(thought):
  outcomes, folder, text, reader = thought
  drawn = {'discoveries_by_tokens.png', 'discoveries_by_dollars.png'}
  assert {path.name for path in folder.iterdir()} == PICTURES | drawn | {'index.html'}
  assert len(reader.named('h2')) == 13 and 'origins' in {attributes['id'] for attributes in reader.named('h2')}
  shown = ' '.join(''.join(reader.text).split())
  calls, tokens = (sum(getattr(outcome.spend, name) for outcome in outcomes) for name in ('calls', 'tokens'))
  assert f'{markup.scaled(tokens)} tokens in {calls} calls' in shown
  assert 'Before training: in 21 cycles the best of several was trained, out of 63 proposals; ' in shown
  assert 'Best improvement so far' in text
  targets = {attributes['id'] for _, attributes in reader.elements if 'id' in attributes}
  assert all(attributes['href'][1:] in targets for attributes in reader.named('a'))


def test_the_discovery_curve_says_what_it_counts_and_which_shapes_are_excluded(thought, forty):
  for outcomes, _, _, reader in (thought, forty):
    shown = ' '.join(''.join(reader.text).split())
    assert 'measured better (not yet claimed)' in shown and 'by chance' in shown
    copied = {copy.id for copy in placebo.placebos(outcomes, EXPERIMENT)}
    for each in curve.curves(outcomes, placebos=copied).values():
      assert each.fitted.verdict in shown
    for shape in ('linear', 'power law', 'saturating'):
      assert shape in shown
  assert 'Discoveries against tokens' in ''.join(thought[3].text)


def test_confirmed_entries_are_counted_where_they_are_named(tmp_path):
  outcomes = samples.archive(12)
  candidates = [entry.id for entry in records.entries_of(outcomes) if entry.role == 'candidate']
  _, reader = written(outcomes, tmp_path, confirmed={candidates[0], candidates[-1]})
  shown = ' '.join(''.join(reader.text).split())
  assert 'entries that a confirmatory run confirmed' in shown and '2 confirmed' in shown
  assert 'not yet claimed' not in shown and 'by chance' not in shown
  with pytest.raises(ValueError, match='confirmed names 0, which is no measured candidate'):
    written(outcomes, tmp_path, confirmed={0})


def test_models_without_a_price_cost_tokens_and_no_dollars(tmp_path):
  outcomes = [
    dataclasses.replace(outcome, spend=dataclasses.replace(outcome.spend, dollars=0.0))
    for outcome in samples.model_archive(8)
  ]
  calls = [{**event, 'dollars': 0.0} for event in samples.model_journal(outcomes) if event['event'] == 'call']
  _, reader = written(outcomes, tmp_path, journal_events=calls)
  assert {path.name for path in tmp_path.iterdir()} == PICTURES | {'discoveries_by_tokens.png', 'index.html'}
  assert '$' not in ''.join(reader.text)


@pytest.mark.words
def test_calls_of_a_cycle_that_was_cut_off_are_counted_and_said(tmp_path):
  outcomes = samples.model_archive(6)
  events = samples.model_journal(outcomes)
  for added, said in ((0, ''), (1, 'The journal has 1 call more'), (3, 'The journal has 3 calls more')):
    _, reader = written(outcomes, tmp_path, journal_events=events + [samples.call(cycle=99)] * added)
    found = re.search(r'The journal has \d+ calls? more', ''.join(reader.text))
    assert (found.group() if found else '') == said
  written((), tmp_path, journal_events=[samples.call()])  # stopped in its first cycle


@pytest.mark.sweep
def test_any_archive_of_models_has_a_report_without_a_warning(tmp_path, recwarn):
  for name, outcomes in ARCHIVES.items():
    rng = samples.np.random.default_rng(3)
    told = [samples.thought_of(outcome, rng) for outcome in outcomes]
    written(told, tmp_path / name, journal_events=samples.model_journal(told))
  assert not [str(warning.message) for warning in recwarn if 'layout' in str(warning.message)]


def test_svg_in_the_page_is_well_formed(forty):
  _, _, text, _ = forty
  drawings = re.findall(r'<svg role="img".*?</svg>', text, flags=re.S)
  assert len(drawings) == 5
  for drawing in drawings:
    xml.etree.ElementTree.fromstring(drawing)


ARCHIVES = {
  'empty': (),
  'baseline alone': samples.baselines()[:1],
  'baselines': samples.baselines(),
  'rejections': tuple(samples.rejection(key, stage) for key, stage in enumerate(records.FAILURES)),
  'one candidate': (*samples.baselines(), samples.entry(3)),
  'no baseline': (samples.entry(3), samples.entry(4, parent_id=3)),
  'one seed': (samples.baseline(seeds=1), samples.entry(3, seeds=1)),
  'all worse': (*samples.baselines(), samples.entry(3, -0.4), samples.entry(4, -0.5)),
  'diverged': (*samples.baselines(), samples.entry(3, diverged=(0, 1, 2, 3)), samples.entry(4, diverged=(1, 2))),
  'unfinished': (*samples.baselines(), samples.entry(3, judged=False, fitted=False, analysed=False)),
  'no replicas': (samples.baseline(), dataclasses.replace(samples.entry(3), training=samples.training(3, seeds=0))),
  'same values': (samples.baseline(), dataclasses.replace(samples.baseline(), id=1, role='candidate')),
}  # fmt: skip


@pytest.mark.parametrize('name', slow_but(['empty', 'rejections', 'no baseline', 'diverged'], ARCHIVES))
def test_any_archive_has_a_report(tmp_path, name):
  text, reader = written(ARCHIVES[name], tmp_path)
  assert len({attributes['id'] for attributes in reader.named('h2')} - {'tasks'}) == 11
  assert {path.name for path in tmp_path.iterdir()} == PICTURES | {'index.html'}
  assert not re.search(r'>\s*[+−]?(nan|inf)\b', text) or name in ('diverged', 'no replicas', 'one seed')


@pytest.mark.words
def test_it_says_when_nothing_is_shown_to_be_better(tmp_path):
  _, reader = written(ARCHIVES['all worse'], tmp_path)
  text = ' '.join(''.join(reader.text).split())
  assert 'None measured better than delta_net' in text and 'It measured worse' in text


def test_an_interval_without_limit_is_drawn_open_and_said(tmp_path):
  text, reader = written(ARCHIVES['one seed'], tmp_path)
  assert 'class="span open"' in text
  assert 'interval unknown' in ''.join(reader.text)


@pytest.mark.parametrize(
  'low, high, dropped, said',
  [
    (-math.inf, math.inf, 0, 'a single pair says nothing of noise'),
    (-math.inf, math.inf, 2, 'interval unknown: replicas diverged'),
    (-math.inf, 0.3, 1, '(at most +0.3000 at 95 %: a replica diverged)'),
    (0.1, math.inf, 1, '(at least +0.1000 at 95 %: the other lost a replica)'),
    (0.1, 0.3, 0, '(95 % interval +0.1000 to +0.3000)'),
  ],
)
def test_an_end_that_is_open_says_why(low, high, dropped, said):
  assert said in markup.interval(records.Evidence(0.2, low, high, 0.5, 3, dropped=dropped))


@pytest.mark.slow
def test_five_hundred_entries_are_written_in_time_and_size(tmp_path):
  outcomes = samples.archive(500, rejected=0.1)
  began = time.monotonic()
  text, reader = written(outcomes, tmp_path)
  assert time.monotonic() - began < 60
  assert len(text) < 8_000_000
  assert len([a for a in reader.named('details') if str(a.get('id', '')).startswith('outcome-')]) == len(outcomes)


def test_a_large_archive_keeps_the_details_of_the_best_and_the_newest():
  outcomes = samples.archive(700)
  text = details.every(outcomes)
  kept = {int(key) for key in re.findall(r'id="outcome-(\d+)"', text)}
  best = max(
    records.entries_of(outcomes), key=lambda entry: entry.evidence.improvement if entry.evidence else -math.inf
  )
  assert len(kept) == details.DETAILED and {best.id, outcomes[-1].id} <= kept
  assert f'{len(outcomes) - len(kept)} more are in the archive' in text


@pytest.mark.words
def test_effects_are_estimated_from_genomes_or_taken_as_given(tmp_path):
  rng = samples.np.random.default_rng(0)
  outcomes = list(samples.archive(30))
  for index, outcome in enumerate(outcomes):
    genome = {'gate': str(rng.choice(['sigmoid', 'softmax'])), 'taps': int(rng.integers(2, 4))}
    outcomes[index] = dataclasses.replace(outcome, proposal=dataclasses.replace(outcome.proposal, genome=genome))
  _, reader = written(outcomes, tmp_path / 'estimated')
  assert 'What choices in a design are worth' in ''.join(reader.text)
  given = Effect('warp', 1, 2, 5, 0.02, 0.01, 0.03)
  _, reader = written(outcomes, tmp_path / 'given', effect_rows=[given])
  text = ''.join(reader.text)
  assert 'warp' in text and '1 → 2' in text and 'taps' not in text


def test_costs_add_up(forty):
  outcomes, _, _, reader = forty
  text = ''.join(reader.text)
  assert markup.duration(sum(outcome.timing.wall_seconds for outcome in outcomes)) in text
  assert markup.duration(sum(outcome.timing.accelerator_seconds for outcome in outcomes)) in text


@pytest.mark.words
def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path):
  written(samples.baselines(), tmp_path)
  before = (tmp_path / 'index.html').read_bytes()
  for path in tmp_path.glob('*.png'):
    path.unlink()
    path.mkdir()
  with pytest.raises(OSError, match=r'\.png \([0-9,]+ bytes\) could not be written.* safe in the archive; free space'):
    page.write(samples.archive(5), tmp_path, experiment=EXPERIMENT)
  assert (tmp_path / 'index.html').read_bytes() == before
  assert {path.name for path in tmp_path.iterdir()} == PICTURES | {'index.html'}


def test_names_in_figures_are_one_short_printable_line():
  assert label('a\x00b\n\tc') == 'a b c'
  assert label('') == '(no name)'
  assert len(label('x' * 500)) == 28


def test_labels_keep_their_distance_and_order():
  placed = figures.spread([0.9, 0.1, 0.11, 0.12, 0.5], 0.1)
  assert sorted(range(5), key=placed.__getitem__) == [1, 2, 3, 4, 0]
  rows = sorted(placed)
  assert all(b - a >= 0.1 - 1e-9 for a, b in itertools.pairwise(rows))


BROWSER = shutil.which('chromium') or shutil.which('google-chrome')
SAFE = (
  '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync',
  '--disable-background-networking', '--disable-component-update', '--virtual-time-budget=4000',
)  # fmt: skip
ACTIONS = """<script>
addEventListener('load', () => {
  const report = {};
  const names = () => [...document.querySelectorAll('#leaderboard-table tbody tr')].filter((row) => !row.hidden)
    .map((row) => row.cells[0].textContent);
  const heads = [...document.querySelectorAll('#leaderboard-table thead button')];
  const click = (text) => heads.find((head) => head.textContent === text).click();
  report.start = names();
  click('rank'); click('rank');
  report.reversed = names();
  click('improvement');
  report.last_by_improvement = names().at(-1);
  const search = document.querySelector('#search');
  search.value = 'anchor'; search.dispatchEvent(new Event('input'));
  report.anchors = names();
  report.count = document.querySelector('#count').textContent;
  report.opened = document.querySelector('#outcome-5').open;
  report.closed = document.querySelector('#outcome-6').open;
  report.wider = document.documentElement.scrollWidth - innerWidth;
  document.body.dataset.report = JSON.stringify(report);
});
</script>"""


@pytest.mark.skipif(BROWSER is None, reason='needs chromium to run the page')
@pytest.mark.parametrize('search', ['forty', 'thought'])
@pytest.mark.parametrize('width', [390, 1400])
def test_the_page_sorts_searches_unfolds_and_fits_in_a_browser(request, search, tmp_path, width):
  _, _, text, _ = request.getfixturevalue(search)
  (tmp_path / 'page.html').write_text(text.replace('</body>', f'{ACTIONS}</body>'), 'utf-8')
  with tempfile.TemporaryDirectory() as profile:
    done = subprocess.run(
      [BROWSER, *SAFE, f'--user-data-dir={profile}', f'--window-size={width},900', '--dump-dom', f'file://{tmp_path}/page.html#outcome-5'],
      capture_output=True, text=True, timeout=90, env=os.environ | {'HOME': profile},
    )  # fmt: skip
  reports = [a['data-report'] for a in Reader(done.stdout[done.stdout.index('<html') :]).named('body')]
  report = json.loads(reports[0])
  assert report['start'] == [str(rank) for rank in range(1, len(report['start']) + 1)]
  assert report['reversed'] == report['start'][::-1]
  assert report['anchors'] and report['count'].startswith(f'{len(report["anchors"])} of ')
  assert report['opened'] and not report['closed']
  assert report['wider'] <= 0, 'the page is wider than the window'


def test_the_templates_are_part_of_the_package():
  folder = pathlib.Path(page.__file__).parent
  assert (folder / 'page.html').exists() and (folder / 'page.css').exists()
