"""Every setting changes something: each leaf has a probe whose answer differs between the default and another value."""

import ast
import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asiarch_jax import config, cycle, dialogue, worker
from asiarch_jax.agents import evolution, judge, repairer, researcher, summariser
from asiarch_jax.arch import contract, lm
from asiarch_jax.arch.baselines import delta_net, gated_delta_net
from asiarch_jax.cognition import paper, retrieval
from asiarch_jax.records import Cost, Job, to_json, without_timing
from asiarch_jax.search import fitness, pool, sampling
from asiarch_jax.shell import corpus as corpora
from asiarch_jax.shell import library
from asiarch_jax.tasks import TASKS
from tests import fakes, samples

ROOT = pathlib.Path(__file__).parents[1]
SMALL = config.from_dict(
  {
    'model': {'width': 16, 'layers': 2, 'heads': 2, 'mlp_width': 24},
    'training': {'steps': 8, 'batch': 2, 'length': 16, 'seeds': 2, 'steps_per_call': 2},
    'evaluation': {'validation_windows': 4, 'test_windows': 4, 'batch': 4},
    'tasks': {'names': ['mqar'], 'steps': 4, 'examples': 8, 'pairs': 2, 'symbols': 8, 'length': 16, 'copies': 2},
  }
)
ARCHIVE = samples.archive(60)


def changed(experiment, name, value):
  """Returns the experiment with one leaf replaced."""
  part, _, rest = name.partition('.')
  return dataclasses.replace(experiment, **{part: changed(getattr(experiment, part), rest, value) if rest else value})


def host(experiment):
  """What the model is: the programs that initialise and differentiate it."""
  model = lm.LanguageModel(delta_net.Mixer, experiment.model)
  tokens, key = jnp.arange(8)[None], jax.random.key(0)
  shapes = jax.eval_shape(model.initial_parameters, key)
  step = jax.make_jaxpr(lambda p: jax.grad(lambda q: model.apply({'params': q}, tokens).sum())(p))(shapes)
  return str(jax.make_jaxpr(model.initial_parameters)(key)), str(step)


def breeding(experiment):
  chosen = [
    sampling.select(ARCHIVE, experiment.search, experiment.fitness, np.random.default_rng(n)) for n in range(30)
  ]
  members = [entry.id for entry in pool.pool(ARCHIVE, experiment.search, experiment.fitness)]
  return members, [(s.parent and s.parent.id, [r.id for r in s.references]) for s in chosen]


def terms(experiment):
  return [
    fitness.composite(e, ARCHIVE[0], experiment.fitness) for e in ARCHIVE if hasattr(e, 'training') and e.training
  ]


def jobs(experiment):
  return [cycle.job_of(samples.proposal(), ARCHIVE[:n], n, experiment, 'text') for n in (0, 2, 30)]


def proposals(experiment):
  asked = []
  for n in range(25):
    rng = np.random.default_rng(n)
    selection = sampling.select(ARCHIVE[:3], experiment.search, experiment.fitness, rng)
    asked.append(evolution.Evolution(experiment.researcher).propose(selection, ARCHIVE[:3], rng).source)
  return asked


def asked(experiment):
  """What a language-model team is told and how often, over a few selections."""
  model = fakes.FakeModel()
  base = retrieval.Base(tuple(paper.parsed(text, name) for name, text in sorted(library.packaged().items())))
  templates = library.prompts()
  author = researcher.ModelResearcher(
    model,
    experiment,
    templates,
    base,
    summariser.Summariser(model, templates, base, {} if experiment.researcher.summaries == 'cached' else None),
    repairer.Repairer(model, templates),
    retrieval.nearest_texts,
  )
  for n in range(12):
    rng = np.random.default_rng(n)
    outcomes = (*ARCHIVE[:20], dataclasses.replace(samples.rejection(99), proposal=samples.proposal('broken')))
    author.propose(sampling.select(outcomes, experiment.search, experiment.fitness, rng), outcomes, rng)
  author.repeats(samples.proposal(), ARCHIVE[:20])
  return [(prompt.role, prompt.text) for prompt in model.asked]


def calls(experiment):
  """How each role is asked."""
  return [dialogue.settings_of(experiment.llm, role) for role in config.ROLES]


def examples(experiment):
  """What the synthetic tasks ask."""
  made = [TASKS[name].make(jax.random.key(0), experiment.tasks, 4, 16, 64) for name in ('mqar', 'selective_copying')]
  return [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(made)]


def matching(experiment):
  """Whether a mixer of another size can be brought to the parameters of the baseline."""
  target = lm.parameter_count(delta_net.Mixer, experiment.model)
  job = Job('gated_delta_net', '', config.worker_part(experiment), parameters=target)
  return worker.matched(gated_delta_net.Mixer, job, experiment)[1].passed


PROBES = {
  'model.width': (host, 32),
  'model.layers': (host, 3),
  'model.heads': (host, 4),
  'model.mlp_width': (host, 32),
  'model.vocabulary': (host, 300),
  'model.tied': (host, False),
  'model.scan_layers': (host, True),
  'model.remat': (host, True),
  'model.dtype': (host, 'bfloat16'),
  'model.norm_epsilon': (host, 1e-3),
  'model.init_stddev': (host, 0.5),
  'search.pool': (breeding, 5),
  'search.refresh': (breeding, 7),
  'search.cold_start': (breeding, 500),
  'search.parent_ranks': (breeding, (1, 2)),
  'search.reference_ranks': (breeding, (2, 6)),
  'search.references': (breeding, 1),
  'search.baseline': (breeding, 'gated_delta_net'),
  'search.match_parameters': (jobs, False),
  'search.parents': (breeding, 'none'),
  'training.first_seed': (jobs, 8),
  'search.baselines': (jobs, ('delta_net', 'gated_delta_net')),
  'search.anchors': (jobs, ()),
  'fitness.gain': (terms, 3.0),
  'fitness.band': (terms, 0.3),
  'fitness.leak': (breeding, 0.001),
  'fitness.worse_loss': (breeding, 1e-5),
  'fitness.worse_tasks': (breeding, 1e-5),
  'tasks.pairs': (examples, 1),
  'tasks.symbols': (examples, 12),
  'tasks.length': (examples, 12),
  'tasks.copies': (examples, 3),
  'checks.parameter_tolerance': (matching, 1e-9),
  'checks.smallest_mlp': (matching, 0.99),
  'researcher.fresh': (proposals, 0.9),
  'researcher.combine': (proposals, 0.0),
  'researcher.simplify': (proposals, 0.9),
  'researcher.mutations': (proposals, 8.0),
  'researcher.revive': (asked, 0.9),
  'researcher.summaries': (asked, 'cached'),
  'researcher.neighbours': (asked, 2),
  'cognition.shown': (asked, 0),
  'llm.model': (calls, 'gemini-other'),
  **{
    f'llm.{role}.{name}': (calls, value)
    for role in config.ROLES
    for name, value in (('model', 'm'), ('temperature', 0.5), ('reply_tokens', 77), ('thinking', 'low'))
  },
}  # fmt: skip
MEASURED = {  # by training a tiny model: slow, in the sweep
  'seed': 1,
  'training.steps': 4,
  'training.batch': 4,
  'training.length': 32,
  'training.seeds': 3,
  'training.learning_rates': (1e-3, 4e-3),
  'training.schedule': 'cosine',
  'training.warmup': 0.5,
  'training.decay': 0.9,
  'training.final': 0.9,
  'training.weight_decay': 0.9,
  'training.b1': 0.1,
  'training.b2': 0.1,
  'training.epsilon': 1.0,
  'training.clip': 1e-3,
  'training.steps_per_call': 4,
  'monitor.suspicious': 0.99,
  'monitor.hopeless': 1e-6,
  'monitor.hopeless_at': 0.9,
  'evaluation.validation_windows': 8,
  'evaluation.test_windows': 8,
  'tasks.names': ('selective_copying',),
  'tasks.steps': 8,
  'tasks.examples': 16,
}
ELSEWHERE = {  # the test that shows what a setting does
  'zero_shot.tasks': 'tests/evaluating_test.py::test_what_is_asked_is_what_was_set',
  'zero_shot.limit': 'tests/evaluating_test.py::test_what_is_asked_is_what_was_set',
  'zero_shot.max_length': 'tests/evaluating_test.py::test_what_is_asked_is_what_was_set',
  'zero_shot.include': 'tests/evaluating_test.py::test_what_is_asked_is_what_was_set',
  'zero_shot.in_search': 'tests/evaluating_test.py::test_a_search_asks_every_trained_entry_and_breeds_on_the_answers',
  'name': 'tests/report/page_test.py::test_the_page_is_titled_by_the_name_of_the_experiment',
  'corpus.path': 'tests/shell/archive_test.py::test_a_changed_corpus_is_refused_naming_both_hashes',
  'search.cycles': 'tests/commands_test.py::test_a_search_with_more_cycles_continues',
  'training.data_parallel': 'tests/training/across_devices_test.py::test_eight_devices_give_the_losses_of_one',
  'training.checkpoint_every': 'tests/shell/resumed_worker_test.py::test_training_goes_on_from_its_checkpoint',
  'monitor.too_slow': 'tests/cycle_test.py::test_the_job_is_matched_and_watched_against_the_measured_baseline',
  'evaluation.batch': 'tests/settings_test.py::test_windows_a_call_are_the_same_windows',
  'checks.lengths': 'tests/checks/behaviour_test.py::test_other_lengths_can_be_configured',
  'checks.tolerance': 'tests/checks/behaviour_test.py::test_limits_of_the_gate_can_be_configured',
  'checks.growth': 'tests/checks/behaviour_test.py::test_limits_of_the_gate_can_be_configured',
  'checks.seconds': 'tests/checks/behaviour_test.py::test_the_gate_keeps_to_its_own_time',
  'judge.performance': 'tests/settings_test.py::test_weights_of_the_judge',
  'judge.innovation': 'tests/settings_test.py::test_weights_of_the_judge',
  'judge.complexity': 'tests/settings_test.py::test_weights_of_the_judge',
  'judge.kind': 'tests/team_test.py::test_a_whole_search_with_models_in_every_place',
  'judge.calls': 'tests/agents/model_judge_test.py::test_it_is_asked_as_often_as_is_set',
  'judge.blind': 'tests/agents/model_judge_test.py::test_a_blind_judge_sees_no_motivation',
  'analyst.kind': 'tests/team_test.py::test_a_whole_search_with_models_in_every_place',
  'analyst.insights': 'tests/agents/model_analyst_test.py::test_the_weaknesses_retrieve_papers_which_are_kept',
  'researcher.kind': 'tests/team_test.py::test_a_whole_search_with_models_in_every_place',
  'researcher.samples': 'tests/cycle_test.py::test_of_several_samples_the_best_by_a_cheap_score_is_trained',
  'researcher.micro_steps': 'tests/cycle_test.py::test_without_a_short_run_samples_are_chosen_by_novelty_and_cost',
  'researcher.redraws': 'tests/cycle_test.py::test_a_repeated_idea_is_answered_and_drawn_again_and_in_the_end_rejected',
  'researcher.embedder': 'tests/staff_test.py::test_what_compares_motivations_is_what_was_set',
  'llm.provider': 'tests/staff_test.py::test_the_provider_is_the_one_that_was_set',
  'llm.base_url': 'tests/team_test.py::test_a_whole_search_with_models_in_every_place',
  'llm.project': 'tests/shell/llm_test.py::test_a_project_uses_vertex_with_application_default_credentials',
  'llm.location': 'tests/shell/llm_test.py::test_a_project_uses_vertex_with_application_default_credentials',
  'llm.exchanges': 'tests/staff_test.py::test_the_provider_is_the_one_that_was_set',
  'llm.timeout': 'tests/shell/llm_test.py::test_a_hung_connection_ends_at_the_time_out',
  'llm.attempts': 'tests/shell/llm_test.py::test_trouble_that_stays_is_unavailable_after_all_attempts',
  'llm.backoff': 'tests/shell/llm_test.py::test_trouble_is_asked_again_after_growing_waits',
  'llm.pause': 'tests/shell/patience_test.py::test_without_a_pause_the_failure_comes_out',
  'llm.prices': 'tests/search/budget_test.py::test_other_prices_give_another_estimate',
  'cognition.papers': 'tests/staff_test.py::test_papers_of_ones_own_are_read',
  'budget.dollars': 'tests/search/budget_test.py::test_each_limit_ends_the_search_and_is_named_with_both_numbers',
  'budget.tokens': 'tests/search/budget_test.py::test_each_limit_ends_the_search_and_is_named_with_both_numbers',
  'budget.accelerator_seconds': (
    'tests/search/budget_test.py::test_each_limit_ends_the_search_and_is_named_with_both_numbers'
  ),
  'budget.wall_seconds': 'tests/search/budget_test.py::test_each_limit_ends_the_search_and_is_named_with_both_numbers',
  'search.in_flight': 'tests/staff_test.py::test_cycles_in_flight_overlap_and_workers_keep_to_their_places',
  'runner.workers': 'tests/staff_test.py::test_cycles_in_flight_overlap_and_workers_keep_to_their_places',
  'evidence.floor': 'tests/cycle_test.py::test_the_baseline_gets_the_replicas_of_the_noise_floor_in_blocks_of_one_size',
  'evidence.placebo': 'tests/cycle_test.py::test_a_placebo_passes_as_a_candidate_though_its_function_is_archived',
  'claims.replicas': 'tests/evidence_commands_test.py::test_settings_of_claims_are_those_of_the_jobs',
  'claims.windows': 'tests/evidence_commands_test.py::test_settings_of_claims_are_those_of_the_jobs',
  'claims.budgets': 'tests/evidence_commands_test.py::test_settings_of_claims_are_those_of_the_jobs',
  'claims.error': 'tests/evidence_commands_test.py::test_settings_of_claims_are_those_of_the_jobs',
  'ladder': 'tests/evidence_commands_test.py::test_what_cannot_be_done_is_said_and_nothing_is_written',
  'rungs.small.wall_seconds': 'tests/settings_test.py::test_a_rung_is_measured_with_its_own_sizes',
  'rungs.small.share': 'tests/evidence/ladder_test.py::test_rungs_that_agree_let_few_climb_and_others_let_all',
  'rungs.small.false_discoveries': 'tests/evidence/ladder_test.py::test_false_discoveries_bound_the_climb_too',
  'rungs.small.audit': 'tests/evidence/ladder_test.py::test_some_climb_by_lot_and_never_twice',
  'rungs.small.rounds': 'tests/settings_test.py::test_a_rung_is_measured_with_its_own_sizes',
  **dict.fromkeys(
    (name for name in config.flat(config.Experiment()) if name.startswith('rungs.small.') and name.count('.') == 3),
    'tests/settings_test.py::test_a_rung_is_measured_with_its_own_sizes',
  ),
  'researcher.repairs': 'tests/cycle_test.py::test_findings_go_back_to_the_researcher_a_set_number_of_times',
  'runner.kind': 'tests/shell/runner_test.py::test_the_kind_says_who_runs_a_job_and_what_it_needs',
  'runner.address': 'tests/cluster_search_test.py::test_an_address_without_a_cluster_is_said',
  'model.remat_saves': 'tests/arch/lm_test.py::test_a_rematerialised_block_keeps_what_was_asked_for',
  'training.microbatches': (
    'tests/training/sharded_test.py::test_gradients_summed_over_parts_of_a_batch_give_its_losses'
  ),
  'training.sharded': 'tests/training/across_devices_test.py::test_parameters_shared_out_give_the_losses_of_one_device',
  'training.fsdp': 'tests/training/across_devices_test.py::test_parameters_shared_out_give_the_losses_of_one_device',
  'runner.hosts': 'tests/shell/hosts_test.py::test_a_place_is_what_settings_and_environment_say',
  'runner.host': 'tests/shell/hosts_test.py::test_a_place_is_what_settings_and_environment_say',
  'runner.join_seconds': 'tests/shell/spmd_test.py::test_a_host_that_stays_away_is_named',
  'runner.retries': 'tests/shell/cluster_test.py::test_nodes_that_go_on_being_lost_end_it',
  'runner.jail': 'tests/shell/attacks_test.py::test_the_attacks_do_succeed_without_a_jail',
  'runner.platform': 'tests/shell/runner_test.py::test_a_worker_is_told_the_platform_and_the_number_of_devices',
  'runner.devices': 'tests/shell/devices_test.py::test_every_worker_gets_its_own_gpus',
  'runner.xla_flags': 'tests/shell/runner_test.py::test_a_worker_is_told_the_platform_and_the_number_of_devices',
  'runner.host_devices': 'tests/shell/runner_test.py::test_a_worker_is_told_the_platform_and_the_number_of_devices',
  'runner.wall_seconds': 'tests/shell/runner_test.py::test_a_worker_is_killed_within_two_seconds_of_its_wall_clock',
  'runner.heartbeat_seconds': 'tests/shell/runner_test.py::test_a_silent_worker_is_killed',
  'runner.memory_gib': 'tests/shell/runner_test.py::test_a_limit_is_the_one_that_was_set',
  'runner.processes': 'tests/shell/runner_test.py::test_a_limit_is_the_one_that_was_set',
  'runner.file_mib': 'tests/shell/runner_test.py::test_a_limit_is_the_one_that_was_set',
  'runner.log_kib': 'tests/shell/runner_test.py::test_as_much_of_the_log_is_kept_as_was_set',
}


def test_every_setting_has_its_place():
  assert sorted(config.flat(config.Experiment())) == sorted([*PROBES, *MEASURED, *ELSEWHERE])


@pytest.mark.parametrize('name', ELSEWHERE)
def test_what_is_shown_elsewhere_is_there(name):
  file, _, test = ELSEWHERE[name].partition('::')
  tree = ast.parse((ROOT / file).read_text())
  found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
  assert test in found, f'{file} has no {test}'


@pytest.mark.parametrize('name', PROBES)
def test_a_setting_changes_what_it_says(name):
  probe, value = PROBES[name]
  start = (
    SMALL if name.startswith(('model.', 'tasks.')) else config.from_dict({'search': {'cold_start': 5, 'refresh': 2}})
  )
  assert probe(changed(start, name, value)) != probe(start)


def test_a_rung_is_measured_with_its_own_sizes():
  rung = config.Rung(
    model=dataclasses.replace(SMALL.model, layers=3),
    training=dataclasses.replace(SMALL.training, steps=4, seeds=5),
    evaluation=config.Evaluation(2, 2, 2),
    tasks=dataclasses.replace(SMALL.tasks, pairs=1),
    wall_seconds=7.0,
    rounds=3,
  )
  here = config.at_rung(dataclasses.replace(SMALL, rungs={'next': rung}), 'next')
  assert (here.model, here.training, here.evaluation, here.tasks) == (
    rung.model, rung.training, rung.evaluation, rung.tasks
  )  # fmt: skip
  assert here.runner.wall_seconds == 7.0 and here.evidence.floor == 15  # a pair for every seed of the last round
  with pytest.raises(ValueError, match="'huge' is not a rung; rungs has next"):
    config.at_rung(dataclasses.replace(SMALL, rungs={'next': rung}), 'huge')


def test_weights_of_the_judge():
  entry = next(e for e in ARCHIVE[5:] if hasattr(e, 'evidence'))
  scores = {
    weights: judge.MeasuredJudge(config.Judge(*weights))(entry, ARCHIVE[:5]).score
    for weights in ((0.3, 0.25, 0.45), (0.8, 0.1, 0.1), (0.1, 0.8, 0.1), (0.1, 0.1, 0.8))
  }
  assert len(set(scores.values())) == 4


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  """A corpus of plain sentences, enough for a few windows in every split."""
  folder = tmp_path_factory.mktemp('text')
  rng = np.random.default_rng(0)
  words = ['state', 'key', 'value', 'gate', 'decay', 'token', 'chunk', 'delta']
  documents = [' '.join(rng.choice(words, 120)) for _ in range(400)]
  (folder / 'text.jsonl').write_text('\n'.join(f'{{"text": "{document}"}}' for document in documents))
  corpora.prepare(str(folder / 'text.jsonl'), folder / 'corpus')
  return corpora.load(folder / 'corpus')


def test_windows_a_call_are_the_same_windows(text):
  """`evaluation.batch`: how many go through the program at once changes its shape and nothing that is read."""
  few, many = (list(text.windows('test', 8, 16, batch)) for batch in (2, 8))
  assert [len(batch.tokens) for batch in few] == [2] * 4 and [len(batch.tokens) for batch in many] == [8]
  for ours, theirs in zip(few[0], many[0], strict=True):
    np.testing.assert_array_equal(ours, theirs[:2])
  np.testing.assert_array_equal(np.concatenate([batch.tokens for batch in few]), many[0].tokens)


def measured(experiment, text):
  job = Job('delta_net', '', config.worker_part(experiment), baseline_losses=(5.5, 5.5, 5.5, 5.5))
  summary, scores, _, failure = worker.learn(
    job, experiment, delta_net.Mixer, experiment.model.mlp_width, Cost(1, 1.0, 1, 1.0), text, '', lambda progress: None
  )
  entry = dataclasses.replace(samples.entry(3), training=summary, scores=scores)
  return to_json(without_timing(entry)), failure


@pytest.fixture(scope='module')
def unchanged(text):
  return measured(SMALL, text)


@pytest.mark.slow
def test_the_same_settings_measure_the_same(text, unchanged):
  assert measured(SMALL, text) == unchanged


@pytest.mark.sweep
@pytest.mark.parametrize('name', MEASURED)
def test_a_setting_changes_what_is_measured(name, text, unchanged):
  start, before = SMALL, unchanged
  if name == 'monitor.hopeless_at':  # says nothing unless the rule is on
    start = changed(SMALL, 'monitor.hopeless', 1e-6)
    before = measured(start, text)
  assert measured(changed(start, name, MEASURED[name]), text) != before


def test_sizes_of_the_host_reach_the_mixer():
  assert contract.spec_of(SMALL.model) == contract.MixerSpec(16, 2, jnp.dtype('float32'))
