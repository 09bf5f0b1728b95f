"""The funnel of ASI-ARCH (arXiv 2507.18074): explore small and wide, verify large and few.

Command:  asiarch search --config=configs/asi_arch.py --workdir=runs/asi_arch --config.corpus.path=FOLDER
          asiarch verify --workdir=runs/asi_arch
          asiarch claim ID --workdir=runs/asi_arch --rung=verification
Needs:    the extra [eval], and the network at first use for the data of the paper's tasks (docs/ZERO_SHOT.md);
          --config.zero_shot.in_search=False leaves them out
Hardware: one accelerator of 80 GB for the search; a pod or a node for the rungs above
Text:     FineWeb-Edu with GPT-2's tokenizer, a FOLDER made by `asiarch prepare` (docs/DATA.md)
Time:     not measured
Result:   not run yet: the sizes, the schedule and the rules are checked, the numbers of the paper are not reproduced
"""

import dataclasses

from asiarch_jax import config

CONTEXT, SEQUENCES = 2048, 256
EVALUATION = config.Evaluation(validation_windows=256, test_windows=512, batch=32)


def get_config():
  """Returns the exploration of the paper as a search, with `verification` and `final` as rungs above it.

  What the paper states is kept: 8 x 256 with 8 heads (19.7M parameters, so the head is the embedding) for exploration
  and 24 x 1024 (411.8M, with a head of its own) for verification, 2,000 steps of 256 sequences of 2,048 tokens
  (1.05B), 28,610 of them (15B) at the end, 3e-4 at the peak, AdamW, GPT-2's vocabulary, its fitness, pool and judge,
  1,773 trials, and its task term: 500 items of each zero-shot task, asked of every trained entry. What it leaves open
  or does not do is decided here: two seeds a candidate, the noise floor, placebos at one in twenty, parameters matched
  by the feed-forward, weight decay 0.1 and clipping at 1, the decay of the schedule over the last fifth.
  `--config.researcher.kind=llm` and `--config.judge.kind=llm` with a model make it the paper's, whose researcher is
  one.
  """
  experiment = config.Experiment()
  small = config.Model(
    width=256, layers=8, heads=8, mlp_width=768, vocabulary=50_257, tied=True, dtype='bfloat16', init_stddev=0.02
  )
  large = dataclasses.replace(small, width=1024, layers=24, mlp_width=2816, tied=False, scan_layers=True, remat=True)
  exploration = dataclasses.replace(
    experiment.training,
    steps=2000,
    batch=SEQUENCES,
    length=CONTEXT,
    seeds=2,
    learning_rates=(3e-4,),
    warmup=0.5,
    decay=0.2,
    weight_decay=0.1,
    checkpoint_every=500,
  )
  verification = dataclasses.replace(exploration, warmup=0.1, seeds=1)
  final = dataclasses.replace(verification, steps=28_610, schedule='cosine', warmup=954 / 28_610)
  tasks = dataclasses.replace(experiment.tasks, names=(), steps=10)
  return config.as_config_dict(
    dataclasses.replace(
      experiment,
      name='asi_arch',
      model=small,
      training=exploration,
      evaluation=EVALUATION,
      tasks=tasks,
      zero_shot=dataclasses.replace(experiment.zero_shot, in_search=True),
      checks=dataclasses.replace(experiment.checks, lengths=(1, 37, 64, 129, 512), seconds=600.0),
      search=dataclasses.replace(experiment.search, cycles=1_776),
      runner=dataclasses.replace(experiment.runner, wall_seconds=6 * 3600.0, heartbeat_seconds=1200.0, memory_gib=64.0),
      ladder=('verification', 'final'),
      rungs={
        'verification': config.Rung(
          model=large,
          training=verification,
          evaluation=EVALUATION,
          tasks=tasks,
          wall_seconds=48 * 3600.0,
          share=0.25,
          false_discoveries=0.2,
          audit=10,
          rounds=3,
        ),
        'final': config.Rung(
          model=large,
          training=final,
          evaluation=EVALUATION,
          tasks=tasks,
          wall_seconds=14 * 24 * 3600.0,
          share=0.1,
          false_discoveries=0.05,
          audit=1,
          rounds=2,
        ),
      },
    )
  )
