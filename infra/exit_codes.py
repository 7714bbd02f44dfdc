"""How a process of ours says why it ended. The supervisor reads them; it imports nothing of what failed."""

DEFECT = 1
"""Anything unforeseen; the supervisor starts the process again, less and less often."""
FENCED = 3
"""Its partition or its identity was taken over; it is not started again."""
POSITION = 4
"""Its position cannot be continued from; it is not started again: an operator has to decide."""
