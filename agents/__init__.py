"""Students, teachers, rollout, scoring, credit, trainers, evaluation, command line."""
