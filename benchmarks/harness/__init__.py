"""What the studies of learning share: cells, their costs, statistics, planted environments, models.

A *cell* is one `journeyman train` run (an arm, a seed, a learning rate) and the exams of its
checkpoints. `cells.py` plays cells, some side by side, and reads finished ones back; `costs.py`
says what they cost, `statistics.py` how sure their figures are, `planted.py` has environments with
something in them that is known to be wrong, and `ingredients.py` makes students and teachers whose
weaknesses are known. `methods.py`, `study.py` and `wrong_teacher.py` are made of these.

`rollout.py --peers` is made of others: `lookups.py` says conversations in advance, `peers.py` plays
them in three ways, `widened.py` makes a small model cost what a large one does, and `racing.py`
measures. `scale.py` has simulated workers (`crews.py`), and what a driver does with what they send
(`handling.py`).
"""
