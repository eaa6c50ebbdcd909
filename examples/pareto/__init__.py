"""Two tasks at every preference between them: one network, the whole Pareto front."""
