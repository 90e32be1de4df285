"""The nouns of gpulab: frozen values that flow between the rooms. Hides nothing, imports nothing."""
