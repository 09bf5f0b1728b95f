"""A Flax NNX language model of another code base, with a place for any token-mixing NNX module."""

import jax
import optax
from flax import nnx


class Layer(nnx.Module):
  def __init__(self, mixer, width, rngs):
    self.norm, self.mixer = nnx.RMSNorm(width, rngs=rngs), mixer
    self.up, self.down = nnx.Linear(width, 2 * width, rngs=rngs), nnx.Linear(2 * width, width, rngs=rngs)

  def __call__(self, x):
    x = x + self.mixer(self.norm(x))
    return x + self.down(nnx.gelu(self.up(x)))


class Model(nnx.Module):
  def __init__(self, make_mixer, *, width=32, vocabulary=64, layers=2, rngs):
    self.embed = nnx.Embed(vocabulary, width, rngs=rngs)
    self.layers = nnx.List([Layer(make_mixer(rngs), width, rngs) for _ in range(layers)])

  def __call__(self, tokens):
    x = self.embed(tokens)
    for layer in self.layers:
      x = layer(x)
    return self.embed.attend(x)


def train(model, batches, rate=3e-3):
  """Returns the losses of a short training run."""
  optimizer = nnx.Optimizer(model, optax.adamw(rate), wrt=nnx.Param)

  @nnx.jit
  def step(model, optimizer, tokens):
    def loss_fn(model):
      return optax.softmax_cross_entropy_with_integer_labels(model(tokens[:, :-1]), tokens[:, 1:]).mean()

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss

  return [float(step(model, optimizer, jax.numpy.asarray(batch))) for batch in batches]
