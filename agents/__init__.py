"""Players, teachers, rollouts, search, credit, learning, evaluation, runs, command line."""
