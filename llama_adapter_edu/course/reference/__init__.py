"""The course's solutions, one generated module a lesson: what a failed check falls back to."""
