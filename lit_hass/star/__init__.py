"""The loop of the Self-Taught Reasoner (Zelikman et al. 2022): generate, keep the correct, train again."""
