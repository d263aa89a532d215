"""Networks, students, teachers, rollouts, search, credit, learning, evaluation, runs, command line."""
