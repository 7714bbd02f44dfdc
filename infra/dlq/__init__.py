"""Dead letters in the hands of an operator.

A letter keeps the bytes that were refused for ever. What is done to it stands in `dead_letter_actions`, which
is only ever added to: an edit is a row there whose bytes stand in for the record's when it is redriven.
"""
