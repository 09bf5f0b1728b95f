import ast
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asiarch_jax.agents import genome, variation, writer
from asiarch_jax.agents.genes import GENES, Genome
from asiarch_jax.agents.genome import GENOMES
from asiarch_jax.arch.baselines import delta_net, gated_delta_net
from asiarch_jax.checks import source
from tests.marks import slow_but

ALLOWED = {'jax', 'jax.numpy', 'flax', 'math', 'typing', 'einops', 'pallas_kernels'}
D, H, T = 12, 2, 37  # one full chunk of the fading sum and a rest
EVERYTHING = genome.canonical(
  Genome(
    second_memory=True, retention=True, short_fir=True, long_fir=True, average='ema', copy=True, token_shift=True,
    path_source='raw', rotary=100, key_norm='bounded', value_gate='channel', key_heads='shared', beta_range=2,
    decay='channel', initial_state=True, retention_fading='learned', branch_norm=True, fusion='hierarchical',
    router_input='mean_std', router_hidden=0.25, temperature='learned', floor='learned', entropy=0.01,
    favoured='memory', value_residual='gated', head_mix=True, output_norm='width', output_gate='silu',
    output_gate_rank='low', output_gate_order='before', beta_bias=1.5, fir_sharing='head', fir_init='fading',
  )
)  # fmt: skip


def sample(index):
  """Designs as the search meets them: fresh ones, and children of the baselines some steps on."""
  rng = np.random.default_rng([11, index])
  if index % 2:
    return variation.fresh(rng)
  return variation.mutated(list(GENOMES.values())[index // 2 % 2], 1 + index % 9, rng)


def build(text, dtype=jnp.float32):
  module = types.ModuleType('written')
  exec(compile(text, 'written.py', 'exec'), module.__dict__)
  return module.Mixer(width=D, heads=H, dtype=dtype)


def imported(text):
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield node.module


@pytest.mark.parametrize('count', [60, pytest.param(300, marks=pytest.mark.sweep)])
def test_designs_parse_pass_the_source_check_and_fit_the_page(count):
  texts = set()
  for index in range(count):
    design = sample(index)
    text = writer.write(design, f'design_{index}', 'It may help.')
    assert set(imported(text)) <= ALLOWED
    failed = [finding for finding in source.check(text) if not finding.passed]
    assert not failed, f'{failed}\n{text}'
    long = [line for line in text.splitlines() if len(line) > 120 or line != line.rstrip()]
    assert not long, long
    texts.add(text)
  assert len(texts) == count


@pytest.mark.slow
def test_every_field_changes_the_source_alone():
  """Walks all fields: some design's text changes when this field alone does, for each of its values."""
  waiting = {(name, value) for name, gene in GENES.items() for value in gene.values}
  for index in range(400):
    design = sample(index) if index else EVERYTHING
    text = writer.write(design, 'design', 'It may help.')
    for move in variation.moves(design):
      if (move.field, move.new) in waiting:
        child = variation.applied(design, move.field, move.new)
        if genome.differing(design, child) == (move.field,):
          assert writer.write(child, 'design', 'It may help.') != text, move
          waiting.discard((move.field, move.new))
  assert not waiting, f'never changed alone: {sorted(waiting, key=repr)}'


def test_unused_names_are_not_written():
  for index in range(100):
    tree = ast.parse(writer.write(sample(index), 'design', 'It may help.'))
    stored = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    loaded = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    methods = {node.name for node in tree.body[-1].body if isinstance(node, ast.FunctionDef)} - {'__call__'}
    called = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    brought = {a.asname or a.name for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom) for a in n.names}
    fields = {'width', 'heads', 'dtype', '_'}
    assert stored - loaded - fields == set()
    assert (defined | brought) - loaded - {'jax'} == set()
    assert methods - called == set()


@pytest.mark.parametrize('text', ['', 'Ends with a "quote"', 'a """ b \\', 'x' * 400, 'über\nlines', '"""'])
def test_any_motivation_makes_a_docstring(text):
  tree = ast.parse(writer.write(Genome(), 'a "name"', text))
  assert isinstance(ast.get_docstring(tree), str)


def test_the_docstring_is_the_motivation():
  motivation = 'Heads forget at different speeds. ' * 12
  lines = ast.get_docstring(ast.parse(writer.write(Genome(), 'swift', motivation))).splitlines()
  assert lines[0] == 'swift' and ' '.join(lines[2:]) == motivation.strip()


def test_a_genome_is_written_the_same_as_a_dict_and_as_a_record():
  assert writer.write(EVERYTHING.to_json(), 'a', 'b') == writer.write(EVERYTHING, 'a', 'b')


@pytest.mark.parametrize('name, baseline', [('delta_net', delta_net), ('gated_delta_net', gated_delta_net)])
def test_the_genome_of_a_baseline_computes_what_the_baseline_computes(name, baseline):
  theirs = baseline.Mixer(width=D, heads=H)
  ours = build(writer.write(GENOMES[name], name, 'The same.'))
  x_BTD = jax.random.normal(jax.random.key(0), (2, T, D))
  parameters = theirs.init(jax.random.key(1), x_BTD)['params']
  copied = dict(parameters)
  if 'step_bias' in copied:  # theirs is a vector of its own, ours the bias of the projection
    copied['step'] = {**copied['step'], 'bias': copied.pop('step_bias')}
  shapes = jax.tree.map(jnp.shape, ours.init(jax.random.key(2), x_BTD)['params'])
  assert jax.tree.map(jnp.shape, copied) == shapes
  np.testing.assert_allclose(
    ours.apply({'params': copied}, x_BTD), theirs.apply({'params': parameters}, x_BTD), atol=1e-5
  )


def test_a_fading_sum_is_the_recurrence():
  module = types.ModuleType('written')
  exec(writer.write(Genome(retention=True, delta=False), 'kept', 'It fades.'), module.__dict__)
  keys = jax.random.split(jax.random.key(0), 3)
  q, k, v = (jax.random.normal(key, (2, 75, 3, size)) for key, size in zip(keys, (4, 4, 5), strict=True))
  log_decay_H = jnp.array([-0.01, -0.3, -2.0])
  state, wanted = np.zeros((2, 3, 4, 5)), []
  for t in range(75):
    state = np.exp(log_decay_H)[:, None, None] * state + np.einsum('bhk,bhv->bhkv', k[:, t], v[:, t])
    wanted.append(np.einsum('bhk,bhkv->bhv', q[:, t], state))
  np.testing.assert_allclose(module.fading_sum(q, k, v, log_decay_H), np.stack(wanted, 1), atol=1e-4)


QUICK = {'xla_backend_optimization_level': 0}  # each program runs once or twice: compiling costs more


def runs(design, text=None):
  """Asserts that a design keeps the contract at a small size: each failure names what is wrong."""
  text = text or writer.write(design, 'design', 'It may help.')
  mixer = build(text)
  x_BTD = jax.random.normal(jax.random.key(0), (2, T, D))
  parameters = jax.jit(mixer.init, compiler_options=QUICK)(jax.random.key(1), x_BTD)['params']

  @functools.partial(jax.jit, compiler_options=QUICK)
  def outputs(parameters, x_BTD):
    def loss(parameters):
      y_BTD, sown = mixer.apply({'params': parameters}, x_BTD, mutable=['losses', 'diagnostics'])
      weight_BTD = jax.random.normal(jax.random.key(2), y_BTD.shape)
      return jnp.sum(weight_BTD * y_BTD) + sum(jax.tree.leaves(sown)), y_BTD

    return jax.grad(loss, has_aux=True)(parameters)

  gradients, y_BTD = outputs(parameters, x_BTD)
  assert y_BTD.shape == x_BTD.shape and y_BTD.dtype == x_BTD.dtype and np.isfinite(y_BTD).all()
  for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 1e-7, f'{jax.tree_util.keystr(path)} is dead'
  future = x_BTD.at[:, 20:].set(jax.random.normal(jax.random.key(3), (2, T - 20, D)))
  _, swapped_BTD = outputs(parameters, future)
  np.testing.assert_allclose(swapped_BTD[:, :20], y_BTD[:, :20], atol=2e-4, err_msg='it sees the future')
  assert np.abs(swapped_BTD[:, 20:] - y_BTD[:, 20:]).max() > 1e-3
  first_BTD = jax.jit(mixer.apply, compiler_options=QUICK)({'params': parameters}, x_BTD[:1, :1])
  np.testing.assert_allclose(first_BTD, y_BTD[:1, :1], atol=2e-4, err_msg='it depends on the length or on the batch')
  half = jax.eval_shape(build(text, jnp.bfloat16).apply, {'params': parameters}, x_BTD.astype(jnp.bfloat16))
  assert half.dtype == jnp.bfloat16 and half.shape == x_BTD.shape
  leaves = jax.tree.leaves(parameters)
  assert all(leaf.dtype == jnp.float32 for leaf in leaves)
  assert sum(leaf.size for leaf in leaves) == genome.parameters(design, D, H)


@pytest.mark.parametrize('index', slow_but([0, 5], range(11)))
def test_sampled_designs_run(index):
  runs(sample(index))


def test_the_design_with_everything_runs():
  runs(EVERYTHING)


def test_replicas_of_a_design_with_shared_keys_have_gradients():
  """As training maps them. With the kernel's own grouped heads this ended the process (JAX 0.10.2, CPU)."""
  mixer = build(writer.write(Genome(key_heads='shared'), 'shared', 'It may help.'))
  x_BTD = jax.random.normal(jax.random.key(0), (2, T, D))
  keys = jax.random.split(jax.random.key(1), 2)
  parameters = jax.jit(jax.vmap(lambda key: mixer.init(key, x_BTD)), compiler_options=QUICK)(keys)
  slope = jax.grad(lambda parameters: jnp.sum(mixer.apply(parameters, x_BTD) ** 2))
  gradients = jax.jit(jax.vmap(slope), compiler_options=QUICK)(parameters)
  for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 1e-7, jax.tree_util.keystr(path)


@pytest.mark.sweep
@pytest.mark.parametrize('index', range(11, 100))
def test_many_sampled_designs_run(index):
  design = sample(index)
  if design.key_norm == 'none' and (design.delta or design.second_memory):
    pytest.skip('whether it keeps within bounds is for the gate to say')
  runs(design)


@pytest.mark.parametrize(
  'innocent, guilty, says',
  [
    (
      '    H = self.heads\n',
      "    H = self.heads\n    self.param('spare', nn.initializers.ones, (H,))\n",
      'spare.* is dead',
    ),
    ('((0, 0), (1, 0), (0, 0)))[:, :-1]', '((0, 0), (0, 1), (0, 0)))[:, 1:]', 'it sees the future'),
    ("self.width, 'output')", "self.width, 'output') / x_BTD.shape[1]", 'it depends on the length'),
    ('constant(0.2)', 'constant(jnp.inf)', 'isfinite'),
  ],
)
def test_a_guilty_text_is_caught_here(innocent, guilty, says):
  design = Genome(delta=False, short_fir=True, token_shift=True, value_conv=0)
  text = writer.write(design, 'design', 'It may help.')
  assert innocent in text
  with pytest.raises(AssertionError, match=says):
    runs(design, text.replace(innocent, guilty))
