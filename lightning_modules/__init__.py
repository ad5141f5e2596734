"""Training on top of ``lstm_fused``: models, data, callbacks and the command ``lstm-fused``.

Importing this package imports nothing else; ``lightning_modules.models``, ``.data`` and ``.callbacks`` need the extra
``lstm-fused[train]``.
"""
