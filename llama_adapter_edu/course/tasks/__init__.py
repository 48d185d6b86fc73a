"""Data and settings of the lessons: home commands, telegrams, digits, training profiles."""
