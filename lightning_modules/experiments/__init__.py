"""Experiments: each is a plan of ordinary runs and a report over their folders, and none has a training loop.

A plan (:mod:`~lightning_modules.experiments.plan`) is variants of a config x seeds; every run of it is a ``lstm-fused
fit`` in a folder of its own, ``RUNS/EXPERIMENT/NAME/VARIANT/seed_N/version_K``, so that any scheduler can run it. The
report (:mod:`~lightning_modules.experiments.report`) reads what lies there, whoever has run it.

A new experiment is a subclass of :class:`~lightning_modules.experiments.base.Experiment` in a file here, and a line in
:data:`VERBS`.
"""

# The verb of the command line: where its experiment is, as module and class.
VERBS = {
    "ablate": ("lightning_modules.experiments.ablate", "Ablate"),
    "compare": ("lightning_modules.experiments.compare", "Compare"),
    "memory": ("lightning_modules.experiments.memory", "Memory"),
    "open-gates": ("lightning_modules.experiments.open_gates", "OpenGates"),
}
