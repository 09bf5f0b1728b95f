"""Settings are typed, named in errors, documented, and each is read somewhere."""

import ast
import dataclasses
import importlib.util
import pathlib

import pytest

from asiarch_jax import config
from asiarch_jax.tasks import TASKS

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted((ROOT / 'configs').glob('*.py'))


def load(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_gives_a_valid_experiment_and_says_how_to_run_it(path):
  config.validate(config.from_dict(load(path)))
  head = ast.get_docstring(ast.parse(path.read_text()))
  assert 'Command:' in head and 'Hardware:' in head


def test_the_gallery_has_every_baseline():
  files = {path.stem for path in (ROOT / 'asiarch_jax/arch/baselines').glob('*.py')} - {'__init__'}
  assert set(load(ROOT / 'configs/gallery.py').search.baselines) == files


def test_config_dict_and_json_give_the_experiment_back():
  experiment = config.Experiment()
  assert config.from_dict(config.as_config_dict(experiment)) == experiment
  assert config.from_dict(config.as_dict(experiment)) == experiment


def test_tasks_are_those_that_there_are():
  assert tuple(TASKS) == config.TASKS


def test_unknown_key_names_the_nearest():
  with pytest.raises(ValueError, match=r'config\.training\.stpes.*did you mean config\.training\.steps'):
    config.from_dict({'training': {'stpes': 3}})


@pytest.mark.parametrize(
  'values', [{'seed': 'one'}, {'seed': True}, {'model': {'tied': 1}}, {'training': {'steps': 1.5}}]
)
def test_wrong_type_names_key_and_value(values):
  with pytest.raises(ValueError, match=r'config\.\S+ takes'):
    config.from_dict(values)


GUILTY = {
  'heads': ({'model': {'heads': 3}}, 'model.heads = 3'),
  'dtype': ({'model': {'dtype': 'float16'}}, 'float16'),
  'schedule': ({'training': {'schedule': 'step'}}, 'wsd'),
  'steps_per_call': ({'training': {'steps_per_call': 7}}, 'does not divide'),
  'task steps': ({'tasks': {'steps': 15}}, 'tasks.steps = 15'),
  'data parallel': ({'training': {'data_parallel': 3}}, 'training.batch'),
  'no rates': ({'training': {'learning_rates': []}}, 'at least one'),
  'windows': ({'evaluation': {'batch': 24}}, 'does not divide'),
  'baseline': ({'search': {'baseline': 'gated_delta_net'}}, 'not the first'),
  'anchors': ({'search': {'anchors': ['nobody']}}, 'nobody'),
  'ranks': ({'search': {'parent_ranks': [5, 2]}}, 'two ranks'),
  'task length': ({'tasks': {'length': 4096}}, 'exceeds the sequence length 128'),
  'pairs': ({'tasks': {'pairs': 100}}, 'tasks.pairs = 100 needs as many distinct keys, and tasks.symbols = 16 has 7'),
  'symbols of a rung': ({'rungs': {'big': {'tasks': {'symbols': 400}}}, 'ladder': ['big']}, 'rungs.big: tasks.symbols'),
  'judge': ({'judge': {'performance': 0.9}}, 'make it 1'),
  'researcher': ({'researcher': {'kind': 'oracle'}}, 'oracle'),
  'judge kind': ({'judge': {'kind': 'king'}}, "judge.kind = 'king'; use measured or llm"),
  'analyst kind': ({'analyst': {'kind': 'poet'}}, "analyst.kind = 'poet'"),
  'provider': ({'llm': {'provider': 'oracle'}}, 'use gemini, openai, scripted or recorded'),
  'thinking': ({'llm': {'judge': {'thinking': 'hard'}}}, 'llm.judge.thinking'),
  'no script': ({'llm': {'provider': 'scripted'}, 'judge': {'kind': 'llm'}}, 'needs llm.exchanges'),
  'no samples': ({'researcher': {'samples': 0}}, 'researcher.samples = 0; it is positive'),
  'no marks': ({'judge': {'calls': 0}}, 'judge.calls = 0; it is positive'),
  'runner': ({'runner': {'kind': 'moon'}}, 'moon'),
  'a claim': ({'claims': {'replicas': 7}}, 'claims.replicas = 7; a claim takes at least 8'),
  'a flag': ({'runner': {'xla_flags': ['fast']}}, "runner.xla_flags has 'fast'"),
  'forced devices': ({'runner': {'xla_flags': ['--xla_force_host_platform_device_count=2']}}, 'runner.host_devices'),
  'jail': ({'runner': {'jail': 'paper'}}, 'paper'),
  'zero': ({'training': {'seeds': 0}}, 'positive'),
  'not a number': ({'checks': {'tolerance': float('nan')}}, 'checks.tolerance = nan; give a finite number'),
  'too large': ({'runner': {'memory_gib': 1e300}}, 'runner.memory_gib = 1e'),
  'no share': ({'training': {'b1': 1.5}}, 'training.b1 = 1.5; it is a share'),
  'shares': ({'training': {'warmup': 0.8, 'decay': 0.5}}, 'training.warmup = 0.8 and training.decay = 0.5'),
  'shares of a rung': ({'rungs': {'small': {'training': {'warmup': 0.9}}}}, 'rungs.small.training.warmup = 0.9'),
  'no tokens': ({'checks': {'lengths': [-1]}}, 'each is at least 1'),
  'no task': ({'tasks': {'names': ['bogus']}}, "tasks.names has 'bogus'; there are bits_per_byte, "),
  'twice': ({'tasks': {'names': ['mqar', 'mqar']}}, 'names one twice'),
  'an anchor': ({'search': {'anchors': ['delta_net']}}, 'which all are compared with'),
  'late ranks': ({'search': {'parent_ranks': [60, 90]}}, 'begins beyond search.pool = 50'),
  'a host': ({'runner': {'host': 5, 'hosts': 2}}, 'runner.host = 5 of runner.hosts = 2'),
  'half a number': ({'llm': {'judge': {'thinking': '²'}}}, 'llm.judge.thinking'),
  'no part': ({'model': 3}, "config.model holds settings by name, not '3'"),
  'negative': ({'training': {'warmup': -0.1}}, 'at least 0'),
}  # fmt: skip


@pytest.mark.parametrize('name', GUILTY)
def test_contradictions_are_refused_with_both_values(name):
  values, message = GUILTY[name]
  with pytest.raises(ValueError, match=message.replace('.', r'\.')):
    config.validate(config.from_dict(values))


def test_differences_name_what_makes_another_experiment():
  ours = config.Experiment()
  theirs = dataclasses.replace(ours, model=dataclasses.replace(ours.model, width=128), name='other')
  assert config.differences(ours, theirs) == {'model.width': (64, 128)}
  longer = dataclasses.replace(ours, search=dataclasses.replace(ours.search, cycles=99))
  assert config.differences(ours, longer) == {}


def test_zero_shot_tasks_may_change_unless_the_search_breeds_on_them():
  def asking(**settings):
    return config.from_dict({'zero_shot': settings})

  assert config.differences(asking(limit=5), asking(limit=6, include='mine')) == {}
  bred = asking(limit=5, in_search=True)
  assert config.differences(bred, asking(limit=6, in_search=True)) == {'zero_shot.limit': (5, 6)}
  assert config.differences(bred, asking(limit=5)) == {'zero_shot.in_search': (True, False)}
  assert config.differences(bred, dataclasses.replace(bred, name='other')) == {}
  for settings, said in (({'tasks': []}, 'name at least one'), ({'tasks': ['piqa', 'mqar']}, "tasks.names has 'mqar'")):
    with pytest.raises(ValueError, match=said):
      config.validate(asking(in_search=True, **settings))
    config.validate(asking(**settings))


def test_every_setting_is_documented():
  rows = config.documentation((ROOT / 'asiarch_jax/config.py').read_text())
  assert [row[0] for row in rows] == list(config.flat(config.Experiment()))
  assert [name for name, *_, comment in rows if not comment] == []


def test_every_setting_is_read_outside_the_module_that_declares_it():
  """A key that nothing reads is inert; what each one changes is shown by the tests of its reader."""
  read = set()
  for path in (ROOT / 'asiarch_jax').rglob('*.py'):
    if path.name != 'config.py':
      read |= {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
  inert = [name for name in config.flat(config.Experiment()) if name.rpartition('.')[2] not in read]
  assert inert == []


def test_the_judges_model_may_not_change_under_way_and_others_may():
  def judged(model='', kind='llm'):
    return config.from_dict({'judge': {'kind': kind}, 'llm': {'judge': {'model': model}}})

  assert config.differences(judged('a'), judged('b')) == {'llm.judge.model': ('a', 'b')}
  assert config.differences(judged('a', 'measured'), judged('b', 'measured')) == {}
  other = config.from_dict({'judge': {'kind': 'llm'}, 'llm': {'model': 'x'}})
  assert list(config.differences(judged(), other)) == ['llm.judge.model']
  assert (
    config.differences(
      other, config.from_dict({'judge': {'kind': 'llm'}, 'llm': {'model': 'y', 'judge': {'model': 'x'}}})
    )
    == {}
  )
