"""Multi-query associative recall at the sizes of zoology (arXiv 2312.04927; github.com/HazyResearch/zoology).

One model is trained on a mix of lengths and loads and tested on each size apart, longer and fuller sequences than it
was trained on among them. Vocabulary 8,192, two layers without feed-forward, batches of 256 of one length, 32 epochs,
four learning rates, widths 32, 64 and 128: accuracy is to be read against the size of the state.

Departures: what stands between queries is blank, where zoology's default is random tokens that may be keys; both layers
are the mixer, where zoology puts a short convolution into the first.

`mqar-forgetting` gives a number of keys a second value, which is the one asked for (zoology's `forgetting_mqar`); here
it is half of the keys, as many as by zoology's defaults, and the second values are distinct from all others.
"""

from __future__ import annotations

from asiarch_jax.suites.settings import Recipe, Sequences, Setting, Suite

VOCABULARY = 8192
TEST_EXAMPLES = 1000
MIX = ((64, 4, 100_000), (128, 8, 20_000), (256, 16, 20_000), (256, 32, 20_000), (256, 64, 20_000))
TESTS = ((64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256))
# Updates take room: 5 tokens a pair in all, where it was 4.
FORGETTING_TESTS = ((64, 4), (64, 8), (128, 16), (128, 24), (256, 48), (512, 96), (1024, 192))
FORGETTING_MIX = ((64, 4, 100_000), (128, 8, 20_000), (256, 16, 20_000), (256, 32, 20_000), (256, 48, 20_000))
RATES = (0.001, 0.0031622776601683794, 0.01, 0.03162277660168379)  # logspace(-3, -1.5, 4)
WIDTHS = (32, 64, 128)


def _recipe(width: int) -> Recipe:
  return Recipe(
    width=width,
    heads=2,
    mlp_width=0,
    batch=256,
    epochs=32,
    learning_rates=RATES,
    weight_decays=(0.1,),
    seeds=3,
    metric='micro',
  )


def _setting(
  name: str, mix: tuple[tuple[int, int, int], ...], tests: tuple[tuple[int, int], ...], width: int, share: int = 0
) -> Setting:
  """Returns the setting of a width; one key in `share` is updated, none by default."""

  def kind(length: int, pairs: int, examples: int) -> Sequences:
    return Sequences('mqar', VOCABULARY, length, examples, pairs=pairs, updates=pairs // share if share else 0)

  return Setting(
    f'{name}/width={width}',
    f'{name}, width {width}',
    tuple(kind(*sizes) for sizes in mix),
    tuple(kind(length, pairs, TEST_EXAMPLES) for length, pairs in tests),
    _recipe(width),
  )


def _tiny() -> Setting:
  recipe = Recipe(
    width=32,
    heads=2,
    mlp_width=0,
    batch=32,
    epochs=6,
    learning_rates=(3e-3, 1e-2),
    weight_decays=(0.1,),
    seeds=2,
    epochs_per_look=2,
    metric='micro',
  )
  mix = (Sequences('mqar', 32, 32, 1024, pairs=2), Sequences('mqar', 32, 64, 512, pairs=4))
  tests = tuple(
    Sequences('mqar', 32, length, 256, pairs=pairs) for length, pairs in ((32, 2), (32, 4), (64, 8), (128, 4))
  )
  return Setting('mqar/tiny', 'mqar', mix, tests, recipe)


MQAR = Suite(
  'mqar',
  'recall of up to 256 pairs, trained on up to 64, at three widths',
  tuple(_setting('mqar', MIX, TESTS, width) for width in WIDTHS),
  wall_seconds=24 * 3600.0,
)
FORGETTING = Suite(
  'mqar-forgetting',
  'the same where half of the keys get a second value, which counts',
  tuple(_setting('forgetting', FORGETTING_MIX, FORGETTING_TESTS, width, 2) for width in WIDTHS),
  wall_seconds=24 * 3600.0,
)
SMALL = Suite('mqar-tiny', 'recall of up to 8 pairs, for two CPU cores', (_tiny(),), 900.0)
