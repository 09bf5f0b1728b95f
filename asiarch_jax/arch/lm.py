"""The fixed language model that hosts any mixer, and how a mixer is brought to a given parameter count.

    x = Embed(tokens);  per block: x += Mixer(RMSNorm(x)); x += SwiGLU(RMSNorm(x));  logits = Head(RMSNorm(x))

Everything here is out of a proposal's reach. Parameters are float32, blocks compute in `model.dtype`, logits and norms
are float32. What a mixer sows into `losses` and `diagnostics` passes through.

With `scan_layers` the blocks are one `nn.scan` whose parameters lie stacked under `layers` with a leading axis;
without, they are a Python loop `layer_0, layer_1, ...`. Both start from the same numbers (`initial_parameters`), and
`stacked` and `unstacked` translate one form into the other.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from asiarch_jax import config
from asiarch_jax.arch import contract
from pallas_kernels import implementations

STACKED = 'layers'  # parameters below this top-level name carry one more axis in front, the layer
ONE_BY_ONE = 'layer_'  # prefix of a block's name in the Python loop


class SwiGLU(nn.Module):
  """`W_down(SiLU(W_gate x) * W_up x)` without biases (arXiv 2002.05202)."""

  width: int
  hidden: int
  stddev: float
  dtype: Any

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    dense = functools.partial(
      nn.Dense, use_bias=False, dtype=self.dtype, kernel_init=nn.initializers.normal(self.stddev)
    )
    x_ND = x_BTD.reshape(-1, self.width)  # one plain matrix product a weight: 1.6 times faster on a CPU than [B, T, D]
    gate_NF = dense(self.hidden, name='gate')(x_ND)
    up_NF = dense(self.hidden, name='up')(x_ND)
    return dense(self.width, name='down')(nn.silu(gate_NF) * up_NF).reshape(x_BTD.shape)


class Block(nn.Module):
  """One residual block. Returns (x_BTD, None): the form of a scan's body."""

  mixer: type
  model: config.Model
  mlp_width: int  # 0: no feed-forward

  @nn.compact
  def __call__(self, x_BTD: jax.Array, _: None = None) -> tuple[jax.Array, None]:
    model, spec = self.model, contract.spec_of(self.model)
    norm = functools.partial(nn.RMSNorm, epsilon=model.norm_epsilon, dtype=spec.dtype)
    x_BTD += contract.build(self.mixer, spec)(norm(name='mixer_norm')(x_BTD))
    if not self.mlp_width:
      return x_BTD, None
    mlp = SwiGLU(model.width, self.mlp_width, model.init_stddev, spec.dtype, name='mlp')
    return x_BTD + mlp(norm(name='mlp_norm')(x_BTD)), None


# What a rematerialised block keeps for its backward pass beside its input.
KERNELS = jax.checkpoint_policies.save_only_these_names(*implementations.RESIDUALS)
PRODUCTS = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
SAVES = {
  'nothing': jax.checkpoint_policies.nothing_saveable,
  'kernels': KERNELS,
  'products': PRODUCTS,
  'both': jax.checkpoint_policies.save_from_both_policies(KERNELS, PRODUCTS),
}


Gather = Callable[[str, Any], Any]  # (a block's name, its parameters in parts) -> its parameters, whole


def blocks(x_BTD: jax.Array, mixer: type, model: config.Model, mlp_width: int, gather: Gather | None) -> jax.Array:
  """Returns what the residual blocks make of `x_BTD`: they become submodules of the host that calls."""

  def block_of(name: str) -> Any:
    block: Any = Block
    if gather is not None:
      block = nn.map_variables(Block, 'params', lambda held: {'params': gather(name, held['params'])})
    if model.remat:
      block = nn.remat(block, prevent_cse=not model.scan_layers, policy=SAVES[model.remat_saves])
    return block

  sizes = (mixer, model, mlp_width)
  if model.scan_layers:
    scanned = nn.scan(
      block_of(STACKED),
      variable_axes=dict.fromkeys(('params', *contract.SOWN), 0),
      split_rngs={'params': True},
      length=model.layers,
    )
    return scanned(*sizes, name=STACKED)(x_BTD, None)[0]
  for layer in range(model.layers):
    name = f'{ONE_BY_ONE}{layer}'
    x_BTD, _ = block_of(name)(*sizes, name=name)(x_BTD, None)
  return x_BTD


class LanguageModel(nn.Module):
  """Maps tokens [B, T] to logits [B, T, vocabulary] in float32 through `model.layers` blocks around `mixer`.

  `mlp_width` replaces `model.mlp_width` where a candidate is matched to the baseline's parameters; `gather` is set by
  `by_block`.
  """

  mixer: type
  model: config.Model
  mlp_width: int | None = None
  gather: Gather | None = None

  @nn.compact
  def __call__(self, tokens_BT: jax.Array) -> jax.Array:
    model, dtype = self.model, jnp.dtype(self.model.dtype)
    init = nn.initializers.normal(model.init_stddev)
    embedding_YD = self.param('embedding', init, (model.vocabulary, model.width), jnp.float32)
    x_BTD = embedding_YD[tokens_BT].astype(dtype)

    mlp_width = model.mlp_width if self.mlp_width is None else self.mlp_width
    x_BTD = blocks(x_BTD, self.mixer, model, mlp_width, self.gather)
    x_BTD = nn.RMSNorm(epsilon=model.norm_epsilon, dtype=dtype, name='norm')(x_BTD)
    head_YD = embedding_YD if model.tied else self.param('head', init, embedding_YD.shape, jnp.float32)
    x_ND = x_BTD.reshape(-1, model.width)
    logits_NY = jnp.einsum('nd,yd->ny', x_ND, head_YD.astype(dtype), preferred_element_type=jnp.float32)
    return logits_NY.reshape(*tokens_BT.shape, model.vocabulary)

  @nn.nowrap
  def initial_parameters(self, key: jax.Array) -> Any:
    """Returns fresh parameters: the same numbers with and without `scan_layers`, and for any B and T.

    They are drawn in the scanned form, so that one block's initialisers are traced and compiled however many layers
    there are.
    """
    model = dataclasses.replace(self.model, scan_layers=True, remat=False)
    host = type(self)(self.mixer, model, self.mlp_width, parent=None)
    parameters = host.init(key, jnp.zeros((1, 2), jnp.int32))['params']
    return parameters if self.model.scan_layers else unstacked(parameters)

  @nn.nowrap
  def by_block(self, gather: Gather) -> tuple[LanguageModel, tuple[str, ...]]:
    """Returns this model, with a block's parameters made whole by `gather` when the block runs, and the blocks' names.

    Forward and again backward, so that a device holds one block whole at a time. Without `model.remat` the backward
    pass keeps them anyway: then there are no names, and all parameters are to be whole from the start.
    """
    if not self.model.remat:
      return self, ()
    names = (STACKED,) if self.model.scan_layers else tuple(f'{ONE_BY_ONE}{n}' for n in range(self.model.layers))
    return type(self)(self.mixer, self.model, self.mlp_width, gather, parent=None), names


def stacked(parameters: Any) -> Any:
  """Returns parameters of the Python loop in the form of the scan."""
  names = sorted((n for n in parameters if n.startswith(ONE_BY_ONE)), key=lambda n: int(n.removeprefix(ONE_BY_ONE)))
  rest = {name: value for name, value in parameters.items() if name not in names}
  return rest | {STACKED: jax.tree.map(lambda *leaves: jnp.stack(leaves), *(parameters[name] for name in names))}


def unstacked(parameters: Any) -> Any:
  """Returns parameters of the scan in the form of the Python loop."""
  rest = {name: value for name, value in parameters.items() if name != STACKED}
  layers = jax.tree.leaves(parameters[STACKED])[0].shape[0]
  return rest | {
    f'{ONE_BY_ONE}{layer}': jax.tree.map(lambda leaf, layer=layer: leaf[layer], parameters[STACKED])
    for layer in range(layers)
  }


def parameter_count(mixer: type, model: config.Model, mlp_width: int | None = None) -> int:
  """Returns the number of parameters of the whole model, by shapes alone: nothing is computed."""
  return count(LanguageModel(mixer, model, mlp_width))


def count(host: LanguageModel) -> int:
  """Returns the number of parameters of a host, by shapes alone."""
  shapes = jax.eval_shape(host.initial_parameters, jax.random.key(0))
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def matched_mlp_width(
  mixer: type, model: config.Model, target: int, tolerance: float, smallest: float
) -> tuple[int, int]:
  """Returns (mlp_width, parameters): the feed-forward width that comes nearest to `target` parameters.

  The feed-forward is the only size that changes, and it keeps at least `smallest` of `model.mlp_width`.

  Raises:
    ValueError: the nearest count misses `target` by more than the share `tolerance`.
  """
  per_unit = 3 * model.width * model.layers
  without = parameter_count(mixer, model, 1) - per_unit
  floor = max(1, math.ceil(smallest * model.mlp_width))
  width = max(floor, round((target - without) / per_unit))
  parameters = without + width * per_unit
  if abs(parameters - target) > tolerance * target:
    if parameters > target:
      remedy = (
        f'the mixers hold {without - _host_count(model)} parameters and the feed-forward may not be narrower than '
        f'{floor} (checks.smallest_mlp = {smallest} of {model.mlp_width}); make the mixer smaller by '
        f'{math.ceil((parameters - target) / model.layers)} parameters a layer'
      )
    else:
      remedy = f'one unit of feed-forward width is {per_unit} parameters; raise checks.parameter_tolerance'
    raise ValueError(
      f'{parameters} parameters at best, {target} wanted within {tolerance:.1%} '
      f'(at most {target * (1 + tolerance):.0f}): {remedy}'
    )
  return width, parameters


def mlp_width_of_flops(model: config.Model, target: float, mixers: float, tolerance: float, smallest: float) -> int:
  """Returns the feed-forward width that comes nearest to `target` FLOPs a token, `mixers` of which the mixers take.

  Raises:
    ValueError: the nearest count misses `target` by more than the share `tolerance`.
  """
  per_unit = flops_per_token(model, 2) - flops_per_token(model, 1)
  without = flops_per_token(model, 1) - per_unit + mixers
  floor = max(1, math.ceil(smallest * model.mlp_width))
  width = max(floor, round((target - without) / per_unit))
  reached = without + width * per_unit
  if abs(reached - target) > tolerance * target:
    raise ValueError(
      f'{reached:.0f} FLOPs a token at best, {target:.0f} wanted within {tolerance:.1%}: the mixers take {mixers:.0f} '
      f'and the feed-forward may not be narrower than {floor} (checks.smallest_mlp = {smallest} of {model.mlp_width})'
    )
  return width


def flops_per_token(model: config.Model, mlp_width: int | None = None) -> float:
  """Returns the forward FLOPs a token of the host without its mixers: feed-forward layers and head, matrices only."""
  hidden = mlp_width or model.mlp_width
  return 2.0 * model.width * (3 * hidden * model.layers + model.vocabulary)


def _host_count(model: config.Model) -> int:
  """Returns the parameters of embedding, head and norms: all but mixers and feed-forward."""
  return model.width * (model.vocabulary * (1 if model.tied else 2) + 2 * model.layers + 1)
