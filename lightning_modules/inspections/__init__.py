"""What a look into a run shows: the verbs ``diagnose``, ``weights``, ``gates``, ``gradients`` and ``export``.

Each is a module with ``run(command, arguments)``, and takes the folder of any task's run. What they say in words is
computed from that run's own figures. A run's folder is only added to.
"""
