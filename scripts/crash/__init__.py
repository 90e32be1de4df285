"""
The crash matrix: real commands in processes of their own, broken at every boundary they cross, then recovered and judged.

The simulated AWS lives in the process that forks the commands, so it survives their death, and so do the instances behind it.
"""
