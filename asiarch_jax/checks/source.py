"""What the text of a proposal shows before anything runs: allowed imports and names, and the form of the contract.

The check is an allow-list wherever one is practical. Every dotted name that starts at an import is resolved to its full
path and looked up; a module may be used only as the start of such a path, so no module can be passed around, renamed or
searched; names that are neither bound in the file nor harmless builtins are refused. It keeps honest proposals inside
the contract and tells their author what to change. Hostile code is the jail's business as well (design section 11).
"""

from __future__ import annotations

import ast
import builtins
import functools
from collections.abc import Iterable, Iterator

from asiarch_jax import syntax
from asiarch_jax.records import Failure, Finding

ALLOWED_IMPORTS = (
  'jax',
  'jax.numpy',
  'jax.lax',
  'jax.nn',
  'flax.linen',
  'math',
  'functools',
  'typing',
  'einops',
  'pallas_kernels',
)
MAX_CHARACTERS = 60_000
MAX_DEPTH = 60  # of nested syntax: far beyond what a mixer needs, well below what exhausts the interpreter's stack
SHOWN = 6  # findings of one check; the rest is counted
FIELDS = ('width', 'heads', 'dtype')
SOWN = ('losses', 'diagnostics')  # as arch.contract.SOWN, which needs JAX


def _words(text: str) -> frozenset[str]:
  return frozenset(text.split())


# What `pallas_kernels` offers to a mixer: the functions of its __all__ (tests compare).
KERNELS = _words("""bounded_log_decay causal_conv causal_conv_step delta_rule delta_rule_step l2_normalise
  softplus_log_decay""")
JAX = _words("""
  Array ShapeDtypeStruct checkpoint checkpoint_policies closure_convert custom_gradient custom_jvp custom_vjp
  eval_shape float0 grad hessian jacfwd jacobian jacrev jit jvp linearize named_call named_scope remat value_and_grad
  vjp vmap""")
LINEN = _words("""
  Bidirectional Conv Dense DenseGeneral Dropout Einsum Embed GRUCell GroupNorm InstanceNorm LSTMCell LayerNorm
  MGUCell Module MultiHeadAttention MultiHeadDotProductAttention OptimizedLSTMCell PReLU RMSNorm RNN RNNCellBase
  SelfAttention Sequential SimpleCell WeightNorm BatchNorm SpectralNorm avg_pool celu checkpoint combine_masks compact
  cond custom_vjp dot_product_attention dot_product_attention_weights elu gelu glu hard_sigmoid hard_silu hard_swish
  hard_tanh jit jvp leaky_relu log_sigmoid log_softmax logsumexp make_attention_mask make_causal_mask max_pool nowrap
  normalize one_hot ones ones_init pool relu relu6 remat remat_scan scan selu share_scope sigmoid silu soft_sign softmax
  softplus standardize swish switch tanh vjp vmap zeros zeros_init""")
TYPING = _words("""
  Annotated Any Callable ClassVar Dict Final FrozenSet Generic Iterable Iterator List Literal Mapping NamedTuple
  Optional Protocol Sequence Set Tuple Type TypeAlias TypeVar Union cast overload""")
TREE = _words('tree_map tree_leaves tree_flatten tree_unflatten tree_structure tree_reduce tree_transpose Partial')
ANY = None  # every public name, but for REFUSED_ATTRIBUTES and REFUSED_PATHS
# What may follow a module: names, or ANY. A module that is not a key cannot be reached.
MODULES: dict[str, frozenset[str] | None] = {
  'jax': JAX,
  'jax.numpy': ANY,
  'jax.numpy.fft': ANY,
  'jax.numpy.linalg': ANY,
  'jax.lax': ANY,
  'jax.lax.linalg': ANY,
  'jax.nn': ANY,
  'jax.nn.initializers': ANY,
  'jax.random': ANY,
  'jax.scipy': frozenset(),
  'jax.scipy.special': ANY,
  'jax.scipy.linalg': ANY,
  'jax.scipy.signal': ANY,
  'jax.tree': ANY,
  'jax.tree_util': TREE,
  'jax.typing': frozenset({'ArrayLike', 'DTypeLike'}),
  'flax': frozenset(),
  'flax.linen': LINEN,
  'flax.linen.initializers': ANY,
  'math': ANY,
  'functools': frozenset({'partial', 'partialmethod', 'reduce', 'wraps'}),
  'typing': TYPING,
  'einops': frozenset({'einsum', 'pack', 'rearrange', 'reduce', 'repeat', 'unpack'}),
  'pallas_kernels': KERNELS,
  '__future__': frozenset({'annotations'}),
}

COLLECTIVES = _words("""all_gather all_to_all axis_index axis_size pbroadcast pcast pmax pmean pmin ppermute precv psend
  pshuffle psum psum_scatter pswapaxes ragged_all_to_all with_sharding_constraint""")
REFUSED_PATHS: dict[str, str] = {
  **{f'jax.lax.{name}': 'a mixer must not see the devices or replicas that it runs on' for name in COLLECTIVES},
  **dict.fromkeys(
    ('jax.lax.infeed', 'jax.lax.outfeed', 'jax.lax.create_token', 'jax.lax.after_all'), 'a mixer has no effects'
  ),
  **dict.fromkeys(
    ('jax.lax.rng_uniform', 'jax.lax.rng_bit_generator', 'jax.lax.platform_dependent', 'jax.lax.dce_sink'),
    'a mixer is the same function at every call and on every platform',
  ),
  **dict.fromkeys(
    [
      f'jax.numpy.{name}'
      for name in _words('save savez load fromfile frompyfunc printoptions set_printoptions from_dlpack')
    ],
    'a mixer reads and writes no files and calls no host code',
  ),
}
# Modules that a module may carry among its names.
FOREIGN = _words("""builtins collections core functools importlib inspect io itertools jax lax logging math np numpy
  operator os sys types typing util warnings""")
# Attributes that no honest mixer needs, whatever they are taken from.
REFUSED_ATTRIBUTES: dict[str, str] = {
  **dict.fromkeys(
    _words("""pure_callback io_callback host_callback debug_callback callback debug print_environment_info infeed
    outfeed id_tap id_print"""),
    'a mixer makes no calls to the host',
  ),
  **dict.fromkeys(
    _words("""experimental config distributed profiler monitoring extend ffi lib interpreters dlpack export stages
    clear_caches"""),
    "this part of JAX is out of a proposal's reach",
  ),
  **dict.fromkeys(
    _words("""devices local_devices device_count local_device_count process_index process_count device_put device_get
    default_backend live_arrays addressable_data addressable_shards global_shards unsafe_buffer_pointer
    copy_to_host_async block_until_ready"""),
    'a mixer must not depend on the machine that it runs on',
  ),
  **dict.fromkeys(
    _words('tofile fromfile savez savez_compressed tobytes dump dumps memmap'), 'a mixer writes no files'
  ),
  **dict.fromkeys(('format',), 'a format string reaches attributes that nobody sees: write an f-string'),
  **dict.fromkeys(
    _words("""mro gi_frame gi_code cr_frame ag_frame tb_frame tb_next f_back f_globals f_locals f_builtins f_code
    co_code func_globals func_code with_traceback format_map"""),
    'it leads out of the mixer into the interpreter',
  ),
  **dict.fromkeys(
    _words("""scope parent variables put_variable get_variable has_variable is_mutable_collection is_initializing
    has_rng bind unbind lazy_init tabulate module_paths perturb reset_path path"""),
    'a mixer sees its own parameters and its input only, so that it behaves in training as it did in the checks',
  ),
}
OF_SELF = {
  'name': 'the host names its layers; a mixer must be the same function in each',
  'path': 'the host names its layers; a mixer must be the same function in each',
  'apply': 'a mixer runs inside its host',
  'init': 'a mixer runs inside its host',
}
ALLOWED_DUNDER_ATTRIBUTES = frozenset({'__call__', '__post_init__', '__init__', '__name__'})
ALLOWED_DUNDER_METHODS = frozenset({'__call__', '__post_init__', '__init__', '__setup__'})
ALLOWED_BUILTINS = _words("""
  abs all any bool bytes callable classmethod complex dict divmod enumerate filter float frozenset int isinstance
  issubclass iter len list map max min next object pow property range repr reversed round set slice sorted
  staticmethod str sum super tuple type zip ArithmeticError AssertionError AttributeError Ellipsis Exception IndexError
  KeyError NotImplemented NotImplementedError OverflowError RuntimeError StopIteration TypeError ValueError
  ZeroDivisionError getattr hasattr""")
MUTATORS = _words(
  'append extend insert pop popitem remove clear update setdefault add discard sort reverse __setitem__'
)

CHECKS = ('parse', 'imports', 'names', 'statements', 'state', 'contract')


@functools.lru_cache(maxsize=1024)
def check(source: str) -> tuple[Finding, ...]:
  """Returns one passed `Finding` for each of CHECKS that holds and failed ones with lines for each that does not.

  A text that cannot be parsed gets the finding `parse` alone.
  """
  tree, trouble = _parsed(source)
  if tree is None:
    return (Finding('parse', False, trouble),)
  imports = _Imports(tree)
  complaints: dict[str, list[tuple[int, str]]] = {
    'parse': [],
    'imports': imports.complaints,
    'names': sorted({*_names(tree, imports), *_attributes(tree, imports)}),
    'statements': list(_statements(tree)),
    'state': sorted({*_state(tree, imports)}),
    'contract': list(_contract(tree, imports)),
  }
  return tuple(finding for name in CHECKS for finding in _findings(name, complaints[name]))


def failure(findings: Iterable[Finding]) -> Failure | None:
  """Returns what ends a job whose text was refused; None when every finding passed."""
  failed = [finding for finding in findings if not finding.passed]
  if not failed:
    return None
  more = f' (and {len(failed) - 1} more)' if len(failed) > 1 else ''
  return Failure('checks', f'{failed[0].check}: {failed[0].detail}{more}')


def _findings(name: str, complaints: list[tuple[int, str]]) -> Iterator[Finding]:
  if not complaints:
    yield Finding(name, True, _HELD[name])
  for line, text in complaints[:SHOWN]:
    yield Finding(name, False, f'line {line}: {text}')
  if len(complaints) > SHOWN:
    yield Finding(name, False, f'and {len(complaints) - SHOWN} more of this kind')


_HELD = {
  'parse': 'the text is valid Python',
  'imports': 'only allowed modules are imported',
  'names': 'every name is known and allowed',
  'statements': 'importing the file defines things and does nothing else',
  'state': 'nothing outlives a call',
  'contract': 'class Mixer has the form that the host calls',
}


def _parsed(source: str) -> tuple[ast.Module | None, str]:
  """Returns the syntax tree, or None and what is wrong with the text."""
  if len(source) > MAX_CHARACTERS:
    return None, f'the text has {len(source)} characters, more than {MAX_CHARACTERS}: write a shorter mixer'
  if not source.strip():
    return None, 'the text is empty: define class Mixer(nn.Module)'
  try:
    tree = syntax.parse(source)
  except SyntaxError as error:
    shown = f': {error.text.strip()[:80]!r}' if error.text else ''
    where = f'line {error.lineno}: ' if error.lineno else ''
    return None, f'{where}{error.msg}{shown}; correct the syntax'
  except (ValueError, RecursionError, MemoryError) as error:
    return (
      None,
      f'the text cannot be read as Python ({type(error).__name__}: {error}); write plain UTF-8 without nesting',
    )
  depth = _depth(tree)
  if depth > MAX_DEPTH:
    return None, f'the syntax is nested {depth} deep, more than {MAX_DEPTH}: split the expression'
  return tree, ''


def _depth(tree: ast.AST) -> int:
  depth = 0
  level: list[ast.AST] = [tree]
  while level:
    depth, level = depth + 1, [child for node in level for child in ast.iter_child_nodes(node)]
  return depth


class _Imports:
  """What each imported name stands for, as a dotted path, and what was wrong with the imports."""

  def __init__(self, tree: ast.Module):
    self.paths: dict[str, str] = {}
    self.complaints: list[tuple[int, str]] = []
    for node in ast.walk(tree):
      if isinstance(node, ast.Import):
        for alias in node.names:
          self._module(node.lineno, alias)
      elif isinstance(node, ast.ImportFrom):
        self._members(node)
    self.complaints.sort()

  def _module(self, line: int, alias: ast.alias) -> None:
    if alias.name not in ALLOWED_IMPORTS:
      self.complaints.append((line, f'import of {alias.name!r}: a mixer may import {", ".join(ALLOWED_IMPORTS)} only'))
      return
    name = alias.asname or alias.name.partition('.')[0]
    self.paths[name] = alias.name if alias.asname else name

  def _members(self, node: ast.ImportFrom) -> None:
    module = node.module or ''
    if node.level:
      self.complaints.append((node.lineno, 'a relative import: a mixer is one file that stands alone'))
      return
    if module not in MODULES:
      allowed = ', '.join(ALLOWED_IMPORTS)
      self.complaints.append((node.lineno, f'import from {module!r}: a mixer may import from {allowed} only'))
      return
    for alias in node.names:
      path = f'{module}.{alias.name}'
      if alias.name == '*':
        self.complaints.append((node.lineno, f'from {module} import *: name what is used'))
      elif trouble := refusal(path):
        self.complaints.append((node.lineno, f'from {module} import {alias.name}: {trouble}'))
      else:
        self.paths[alias.asname or alias.name] = path

  def path_of(self, node: ast.AST) -> str | None:
    """Returns the full dotted path of a name or attribute that starts at an import, else None."""
    if isinstance(node, ast.Name):
      return self.paths.get(node.id)
    if isinstance(node, ast.Attribute):
      root = self.path_of(node.value)
      return None if root is None else f'{root}.{node.attr}'
    return None


def refusal(path: str) -> str | None:
  """Returns why the dotted `path` may not be used, None if it may.

  >>> refusal('jax.numpy.exp') is None
  True
  >>> refusal('jax.numpy.save')
  'a mixer reads and writes no files and calls no host code'
  """
  if path in MODULES:
    return None
  if path in REFUSED_PATHS:
    return REFUSED_PATHS[path]
  module = path
  while module not in MODULES:
    if '.' not in module:
      return f'{path} is not among the modules that a mixer may use'
    module = module.rpartition('.')[0]
  name = path.removeprefix(f'{module}.').partition('.')[0]
  if f'{module}.{name}' in REFUSED_PATHS:
    return REFUSED_PATHS[f'{module}.{name}']
  if name in REFUSED_ATTRIBUTES:
    return REFUSED_ATTRIBUTES[name]
  if name.startswith('_'):
    return f'{name} is private to {module}'
  if module != 'jax' and name in FOREIGN:
    return f'{name} is a module that {module} uses itself: import it if it is allowed'
  allowed = MODULES[module]
  if allowed is not ANY and name not in allowed:
    return f'{module} offers a mixer {", ".join(sorted(allowed)) or "nothing by itself"}'
  return None


def _attribute_refusal(name: str, of_self: bool) -> str | None:
  if name.startswith('__') and name.endswith('__'):
    return None if name in ALLOWED_DUNDER_ATTRIBUTES else 'it leads out of the mixer into the interpreter'
  if of_self and name in OF_SELF:
    return OF_SELF[name]
  if name in REFUSED_ATTRIBUTES and not (of_self and name in ('config', 'debug')):
    return REFUSED_ATTRIBUTES[name]
  if name.startswith('_') and not of_self:
    return 'it is private to another object'
  return None


def _is_self(node: ast.AST) -> bool:
  return isinstance(node, ast.Name) and node.id in ('self', 'cls', 'Mixer')


def _attributes(tree: ast.Module, imports: _Imports) -> Iterator[tuple[int, str]]:
  """Yields what is wrong with attributes, with the literals of getattr, and with modules used as values."""
  inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute):
      path = imports.path_of(node)
      if path and id(node) in inner and path not in MODULES:
        continue  # the longer path is looked at
      trouble = refusal(path) if path else _attribute_refusal(node.attr, _is_self(node.value))
      if trouble is None and path and node.attr.startswith('__') and node.attr not in ALLOWED_DUNDER_ATTRIBUTES:
        trouble = 'it leads out of the mixer into the interpreter'
      if trouble is None and path and node.attr in REFUSED_ATTRIBUTES:
        trouble = REFUSED_ATTRIBUTES[node.attr]
      if trouble:
        yield node.lineno, f'{path or "." + node.attr}: {trouble}'
      elif path in MODULES and id(node) not in inner:
        yield node.lineno, f'{path} is used as a value: write {path}.name, or import the name from it'
    elif isinstance(node, ast.Name) and imports.paths.get(node.id) in MODULES:
      if not isinstance(node.ctx, ast.Load):
        yield node.lineno, f'{node.id} is the name of an imported module: choose another name'
      elif id(node) not in inner:
        yield node.lineno, f'{node.id} is used as a value: write {node.id}.name, or import the name from it'
    elif isinstance(node, ast.arg) and imports.paths.get(node.arg) in MODULES:
      yield node.lineno, f'{node.arg} is the name of an imported module: choose another name'
    elif isinstance(node, ast.MatchClass):
      for name in node.kwd_attrs:
        if trouble := _attribute_refusal(name, False):
          yield node.lineno, f'.{name}: {trouble}'
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ('getattr', 'hasattr'):
      literal = node.args[1].value if len(node.args) > 1 and isinstance(node.args[1], ast.Constant) else None
      if not isinstance(literal, str):
        yield node.lineno, f'{node.func.id} with a computed name: write the attribute itself'
      elif trouble := _attribute_refusal(literal, _is_self(node.args[0])):
        yield node.lineno, f'{node.func.id} of {literal!r}: {trouble}'


def _names(tree: ast.Module, imports: _Imports) -> Iterator[tuple[int, str]]:
  """Yields names that are refused builtins, or that nothing binds."""
  bound = _bound(tree) | set(imports.paths) | _imported(tree)
  called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
  for node in ast.walk(tree):
    if not isinstance(node, ast.Name) or not isinstance(node.ctx, ast.Load):
      continue
    name = node.id
    if name in ('getattr', 'hasattr') and id(node) not in called:
      yield node.lineno, f'{name} is used as a value: write the attribute itself'
    elif name in ALLOWED_BUILTINS:
      continue
    elif name == 'print':
      yield node.lineno, "print: a mixer has no output; remove it, or self.sow('diagnostics', name, value)"
    elif hasattr(builtins, name):
      yield node.lineno, f'{name}: this builtin is not for mixers; choose another name if it is a variable'
    elif name.startswith('__') and name.endswith('__'):
      yield node.lineno, f'{name}: it belongs to the interpreter'
    elif name not in bound:
      yield node.lineno, f'{name} is not defined: import or define it'


def _imported(tree: ast.Module) -> set[str]:
  """Returns every name that an import binds, refused imports included: those are complained about once."""
  return {
    alias.asname or alias.name.partition('.')[0]
    for node in ast.walk(tree)
    if isinstance(node, ast.Import | ast.ImportFrom)
    for alias in node.names
  }


def _bound(tree: ast.Module) -> set[str]:
  """Returns every name that the file binds anywhere: by assignment, definition, parameter, loop or pattern."""
  names: set[str] = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
      names.add(node.id)
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
      names.add(node.name)
    elif isinstance(node, ast.arg):
      names.add(node.arg)
    elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
      names.add(node.name)
    elif isinstance(node, ast.MatchMapping) and node.rest:
      names.add(node.rest)
  return names


def _statements(tree: ast.Module) -> Iterator[tuple[int, str]]:
  """Yields statements at the top of the file or of a class that do more than define."""
  classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
  for body in (tree.body, *(node.body for node in classes)):
    for statement in body:
      if isinstance(statement, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef | ast.Pass | ast.AnnAssign):
        continue
      if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        continue
      if isinstance(statement, ast.Expr) and _is_rule(statement.value):
        continue
      if isinstance(statement, ast.Assign) and all(_is_names(target) for target in statement.targets):
        continue
      kind = type(statement).__name__
      yield statement.lineno, f'{kind} at the top level: only imports, constants, functions and classes may stand here'
  for node in ast.walk(tree):
    if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
      yield node.lineno, 'async code: a mixer is a plain function of its input'
    elif isinstance(node, ast.FunctionDef) and node.name.startswith('__') and node.name not in ALLOWED_DUNDER_METHODS:
      yield node.lineno, f'{node.name}: a mixer defines setup, __call__ and methods of its own only'


def _is_rule(node: ast.expr) -> bool:
  """Returns whether `node` gives a function its derivative: `f.defvjp(forward, backward)`."""
  function = node.func if isinstance(node, ast.Call) else None
  return isinstance(function, ast.Attribute) and function.attr in ('defvjp', 'defjvp', 'defjvps')


def _is_names(target: ast.expr) -> bool:
  """Returns whether an assignment binds names only: `a = ...` or `a, b = ...`."""
  return isinstance(target, ast.Name) or (isinstance(target, ast.Tuple) and all(map(_is_names, target.elts)))


def _state(tree: ast.Module, imports: _Imports) -> Iterator[tuple[int, str]]:
  """Yields whatever could carry something from one call to the next."""
  tops = {name for node in tree.body if not isinstance(node, ast.FunctionDef) for name in _targets(node)}
  tops |= {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)} | {'cls'}
  for node in ast.walk(tree):
    if isinstance(node, ast.Global | ast.Nonlocal):
      yield node.lineno, f'{type(node).__name__.lower()} {", ".join(node.names)}: pass values and return them'
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
      yield from _call(node, node.func, tops, imports)
    elif isinstance(node, ast.FunctionDef):
      for default in (*node.args.defaults, *node.args.kw_defaults):
        if isinstance(default, ast.List | ast.Dict | ast.Set):
          yield default.lineno, f'a mutable default of {node.name} is kept between calls: use None or a tuple'
    for target in _stores(node):
      root = _root(target)
      if isinstance(root, ast.Name) and isinstance(target, ast.Subscript | ast.Attribute):
        if root.id in tops:
          yield target.lineno, f'{root.id} is changed and would keep it after the call: a mixer has parameters only'
        elif root.id == 'self' and isinstance(target, ast.Subscript):
          yield target.lineno, 'self is changed in place: a mixer has parameters only'


def _call(node: ast.Call, function: ast.Attribute, tops: set[str], imports: _Imports) -> Iterator[tuple[int, str]]:
  first = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
  for keyword in node.keywords:
    if keyword.arg in ('col', 'collection', 'name') and first is None and isinstance(keyword.value, ast.Constant):
      first = keyword.value.value
  if function.attr == 'variable' and first != 'params':
    yield node.lineno, f'variable({first!r}, ...): a mixer has parameters only; sow into {" or ".join(SOWN)} instead'
  elif function.attr == 'sow' and first not in SOWN:
    yield node.lineno, f'sow({first!r}, ...): sow into {" or ".join(SOWN)} only'
  elif function.attr == 'make_rng' and first != 'params':
    yield node.lineno, f'make_rng({first!r}): a mixer draws random numbers for its parameters only'
  elif function.attr in MUTATORS:
    root = _root(function.value)
    on_module = imports.path_of(function.value) is not None
    if isinstance(root, ast.Name) and not on_module and root.id in tops and not _is_update_of_array(function.value):
      yield node.lineno, f'.{function.attr} changes {root.id}, which outlives the call: use a local variable'


def _is_update_of_array(node: ast.AST) -> bool:
  """Returns whether `node` is x.at[...], whose methods return new arrays."""
  return isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr == 'at'


def _stores(node: ast.AST) -> Iterator[ast.expr]:
  if isinstance(node, ast.Assign | ast.Delete):
    yield from node.targets
  elif isinstance(node, ast.AugAssign | ast.AnnAssign):
    yield node.target


def _targets(node: ast.AST) -> Iterator[str]:
  for target in _stores(node):
    for inner in ast.walk(target):
      if isinstance(inner, ast.Name):
        yield inner.id


def _root(node: ast.AST) -> ast.AST:
  while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
    node = node.func if isinstance(node, ast.Call) else node.value
  return node


def _contract(tree: ast.Module, imports: _Imports) -> Iterator[tuple[int, str]]:
  """Yields how class Mixer differs from what the host constructs and calls."""
  classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
  mixer = classes.get('Mixer')
  if mixer is None:
    yield 1, 'there is no class Mixer: define class Mixer(nn.Module) with the fields width, heads, dtype'
    return
  family, is_module = _family(mixer, classes, imports)
  if not is_module:
    yield mixer.lineno, 'class Mixer does not derive from flax.linen.Module: write class Mixer(nn.Module)'
  fields: dict[str, ast.AnnAssign] = {}
  for node in (node for owner in reversed(family) for node in owner.body if isinstance(node, ast.AnnAssign)):
    if isinstance(node.target, ast.Name) and 'ClassVar' not in ast.dump(node.annotation):
      fields[node.target.id] = node
  missing = [name for name in FIELDS if name not in fields]
  if missing:
    yield mixer.lineno, f'class Mixer lacks the field {", ".join(missing)}: it has {", ".join(FIELDS)}, annotated'
  for name, node in fields.items():
    if name not in FIELDS and node.value is None:
      yield node.lineno, f'field {name} has no default: the host gives {", ".join(FIELDS)} only'
  calls = [n for c in family for n in c.body if isinstance(n, ast.FunctionDef) and n.name == '__call__']
  if not calls:
    yield mixer.lineno, 'class Mixer has no __call__(self, x_BTD)'
    return
  arguments = calls[0].args
  positional = [*arguments.posonlyargs, *arguments.args]
  required = len(positional) - len(arguments.defaults)
  keywords = [a.arg for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is None]
  if required > 2 or keywords or (len(positional) < 2 and arguments.vararg is None):
    yield calls[0].lineno, 'the host calls __call__(self, x_BTD): give every further argument a default'
  if any(isinstance(node, ast.Yield | ast.YieldFrom) for node in ast.walk(calls[0])):
    yield calls[0].lineno, '__call__ is a generator: return y_BTD'
  elif not any(isinstance(node, ast.Return) and node.value is not None for node in ast.walk(calls[0])):
    yield calls[0].lineno, '__call__ returns nothing: return y_BTD'


def _family(
  mixer: ast.ClassDef, classes: dict[str, ast.ClassDef], imports: _Imports
) -> tuple[list[ast.ClassDef], bool]:
  """Returns Mixer and its base classes in this file, nearest first, and whether one derives from nn.Module."""
  family, is_module, waiting = [mixer], False, list(mixer.bases)
  while waiting:
    base = waiting.pop(0)
    if imports.path_of(base) == 'flax.linen.Module':
      is_module = True
    elif isinstance(base, ast.Name) and base.id in classes and classes[base.id] not in family:
      family.append(classes[base.id])
      waiting.extend(classes[base.id].bases)
  return family, is_module
