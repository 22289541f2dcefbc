"""The ways in which cells can be trained, by name.

processes   one cell after the other in each process: one thread a core, or one process a GPU
replicas    several cells at once in each process, stacked; where there are GPUs, one process each
ray         one cell after the other in each worker of a Ray cluster
"""

from wisca_core.comparison import replicas

# Rooms that train several cells at once in a process; nothing else knows them. Taken out, the import and the entry go.
TOGETHER = {"replicas": replicas}
EXECUTORS = ("processes", *TOGETHER, "ray")
