"""How a process of ours says why it ended. The supervisor reads them; it imports nothing of what failed."""

DEFECT = 1
"""Anything unforeseen; the supervisor starts the process again, less and less often."""
FENCED = 3
"""Its partition or its identity was taken over; it is not started again."""
POSITION = 4
"""Its position cannot be continued from; it is not started again: an operator has to decide."""
OVER_LIMIT = 5
"""Most of what it read became dead letters; it is not started again: an operator has to mend the cause."""
STUCK = 6
"""Its position stood still while its lag grew; the supervisor starts it again."""
