"""Which exercises are solved: in a pytest run, in saved notebooks, in a whole class."""
